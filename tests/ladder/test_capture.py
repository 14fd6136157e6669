"""What must not cross the border of a CUDA graph or of compiled code, with a capture that is played."""

import pytest
import torch

from ladderkern.ladder import Collective, LadderStack, RecordingCommunicator, SymmetricMemoryCommunicator, capture, handles
from ladderkern.testing import floats
from ladderkern.testing.branches import branches, stream

NAME = Collective("forward", 2)
HERE = "the forward all-reduce of the output of branch 2 was launched {} a CUDA graph capture and is waited for {} it"


@pytest.fixture
def play(monkeypatch):
    """``play(True)``: a graph is being captured from now on."""

    def play(captured):
        for module in (capture, handles):
            monkeypatch.setattr(module, "capturing", lambda tensor: captured)

    return play


@pytest.mark.parametrize("launched", [True, False])
def test_a_sum_must_not_cross_the_border_of_a_capture(play, launched):
    communicator = RecordingCommunicator()
    play(launched)
    handle = communicator.launch(floats((3,)), NAME)
    play(not launched)
    places = ("inside of", "outside of") if launched else ("outside of", "inside of")
    with pytest.raises(RuntimeError, match=HERE.format(*places)):
        communicator.wait(handle)
    play(launched)
    communicator.wait(handle)  # where it was launched it may still be waited for


@pytest.mark.parametrize("captured", [True, False])
def test_a_whole_call_of_a_stack_stays_on_one_side(play, captured):
    play(captured)
    stack, x = LadderStack(branches([0]), 1, RecordingCommunicator()), stream()
    stack(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_capture_that_begins_inside_a_branch_is_found(play):
    modules = branches([0])
    modules[2].register_forward_pre_hook(lambda *args: play(True))
    with pytest.raises(RuntimeError, match="output of branch 1 was launched outside of a CUDA graph capture"):
        LadderStack(modules, 1, RecordingCommunicator())(stream())


def test_what_needs_the_host_is_made_before_a_capture(play):
    symmetric = SymmetricMemoryCommunicator(None, RecordingCommunicator())
    play(True)
    with pytest.raises(RuntimeError, match="the first sum over symmetric memory cannot be made inside of a CUDA graph capture"):
        symmetric._algorithm(floats((4,)))
    with pytest.raises(RuntimeError, match=r"symmetric buffer for a message of 16 bytes cannot be made .*: run the step once"):
        symmetric._message(floats((4,)))


@pytest.mark.parametrize(
    "options", [{"mode": "reduce-overhead"}, {"mode": "max-autotune"}, {"options": {"triton.cudagraphs": True}}], ids=str
)
def test_cuda_graphs_of_a_stack_that_communicates_are_whole(options):
    stack = LadderStack(branches([0]), 1, RecordingCommunicator())
    with pytest.raises(ValueError, match="makes CUDA graphs, and needs fullgraph=True"):
        stack.compile(**options)
    stack.compile(fullgraph=True, **options)
    LadderStack(branches([0])).compile(**options)  # no sum that could cross


@pytest.mark.parametrize(
    "options", [{}, {"mode": "default"}, {"mode": "max-autotune-no-cudagraphs"}, {"backend": "eager"}], ids=str
)
def test_other_modes_may_break_graphs(options):
    stack = LadderStack(branches([0]), 1, RecordingCommunicator())
    stack.compile(**options)
    assert stack._compiled_call_impl is not None
