"""Memory is used again when nothing refers to it any more, and never before."""

import torch

from maskclip.model.buffers import LARGE, Buffers


def test_memory_is_used_again_once_it_is_free():
    buffers, like = Buffers(), torch.empty(LARGE // 4)
    first, second = buffers.empty_like(like), buffers.empty_like(like)
    places = {first.data_ptr(), second.data_ptr()}
    assert len(places) == 2
    view = first[3:]
    view.fill_(7)
    del first, second
    third, fourth = buffers.empty_like(like), buffers.empty_like(like)  # a view is enough to keep it
    assert third.data_ptr() in places and fourth.data_ptr() not in places
    fourth.fill_(1), third.fill_(2)
    assert (view == 7).all()
    del view
    assert buffers.empty_like(like.view(2, -1).to(torch.int16).view(torch.int8).repeat(1, 2)).data_ptr() in places


def test_what_has_become_too_small_goes():
    buffers = Buffers()
    for size in (LARGE, 3 * LARGE, 2 * LARGE):
        tensor = buffers.empty_like(torch.empty(size, dtype=torch.uint8))
        assert tensor.shape == (size,) and tensor.dtype == torch.uint8
        del tensor
    assert [len(memory) for memory in buffers.free] == [3 * LARGE]


def test_small_tensors_are_torchs():
    buffers = Buffers()
    tensor = buffers.empty_like(torch.empty(3, 4).T)
    assert tensor.is_contiguous() and tensor.shape == (4, 3)
    del tensor
    assert not buffers.free
