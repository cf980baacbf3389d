// A picture, a line of words, and the scores of the segment that was clicked.
function render({ model, el }) {
  el.classList.add("maskclip");
  el.style.cssText = "max-width: 720px; font: 14px/1.5 system-ui, sans-serif";
  el.innerHTML = `
    <input type="text" aria-label="words, separated by commas" spellcheck="false"
      style="width: 100%; box-sizing: border-box; padding: 6px 10px; font-size: 16px">
    <div class="says" role="status" style="min-height: 1.5em"></div>
    <img style="width: 100%; cursor: pointer" alt="the picture with its named segments">
    <div class="scores"></div>`;
  const [words, says, picture, scores] = ["input", ".says", "img", ".scores"].map((name) => el.querySelector(name));
  const show = () => {
    picture.src = `data:image/jpeg;base64,${model.get("picture")}`;
    says.textContent = model.get("says");
    scores.innerHTML = model.get("scores");
  };
  let waiting;
  words.value = model.get("words");
  words.addEventListener("input", () => {
    clearTimeout(waiting);  // one question for a word typed in one go
    waiting = setTimeout(() => { model.set("words", words.value); model.save_changes(); }, 200);
  });
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    model.set("click", [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
    model.save_changes();
  });
  for (const name of ["picture", "says", "scores"]) model.on(`change:${name}`, show);
  show();
}
export default { render };
