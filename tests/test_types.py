import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import types


def test_a_pair_is_two_branches_under_one_context():
    layout = types.Layout.of(("chosen", "rejected"))
    assert layout == types.Layout(("clean",), ("chosen", "rejected"), (0, 0))
    assert layout.responses == ("chosen", "rejected")


def test_contexts_are_numbered_in_order_of_first_use():
    layout = types.Layout.of(("chosen", "rejected", "chosen@corrupted", "rejected@other"))
    assert layout.contexts == ("clean", "corrupted", "other")
    assert layout.context_of == (0, 0, 1, 2)
    assert layout.responses == ("chosen", "rejected", "chosen", "rejected")
    assert [layout.branches_of(m) for m in range(3)] == [(0, 1), (2,), (3,)]


def test_a_layout_need_not_have_a_clean_context():
    layout = types.Layout.of(("chosen@corrupted",))
    assert layout.contexts == ("corrupted",)
    assert layout.context_of == (0,)


def test_a_branch_is_found_by_name_and_clean_may_be_written_or_left_out():
    layout = types.Layout.of(("chosen", "rejected@clean", "chosen@corrupted"))
    assert layout.index("chosen") == layout.index("chosen@clean") == 0
    assert layout.index("rejected") == 1
    assert layout.index("chosen@corrupted") == 2
    with pytest.raises(ValueError, match=r"No branch 'rejected@corrupted'.*chosen, rejected@clean"):
        layout.index("rejected@corrupted")


def test_layouts_without_branches_or_with_equal_ones_are_refused():
    with pytest.raises(ValueError, match="at least one branch"):
        types.Layout.of(())
    with pytest.raises(ValueError, match="must differ"):
        types.Layout.of(("chosen", "chosen"))


def test_a_layout_is_static_under_jit():
    @jax.jit
    def untouched(x):
        return x

    layout = types.Layout.of(("chosen", "rejected"))
    assert hash(layout) == hash(types.Layout.of(("chosen", "rejected")))
    counted = jax.jit(lambda layout, x: x + len(layout.branches), static_argnums=0)
    assert counted(layout, untouched(jnp.ones(()))) == 3


def make_logps():
    """Two instances, two branches, three tokens; the second instance has no second branch."""
    policy = np.array([[[-1, -2, -9], [-3, -4, -5]], [[-1, -1, -1], [-7, -7, -7]]], np.float32)
    ref = np.array([[[-2, -2, -9], [-1, -1, -1]], [[-1, -3, -1], [-7, -7, -7]]], np.float32)
    mask = np.array([[[1, 1, 0], [1, 0.5, 1]], [[1, 1, 1], [0, 0, 0]]], np.float32)
    return types.Logps(policy, ref, mask)


def test_sums_over_tokens_by_hand():
    logps = make_logps()
    np.testing.assert_array_equal(logps.total(0), [-3, -3])
    np.testing.assert_array_equal(logps.total(1), [-3 - 2 - 5, 0])
    np.testing.assert_array_equal(logps.ratio(0), [1, 2])
    np.testing.assert_array_equal(logps.ratio(1), [-2 - 1.5 - 4, 0])
    np.testing.assert_array_equal(logps.length(0), [2, 3])
    np.testing.assert_array_equal(logps.length(1), [2.5, 0])


def test_an_instance_is_present_when_all_the_branches_are():
    logps = make_logps()
    np.testing.assert_array_equal(logps.present(0), [1, 1])
    np.testing.assert_array_equal(logps.present(0, 1), [1, 0])


def test_batches_and_logps_are_pytrees():
    logps = make_logps()
    doubled = jax.tree.map(lambda x: 2 * x, logps)
    np.testing.assert_array_equal(doubled.policy, 2 * logps.policy)
    labels = types.Labels(*np.zeros((4, 1)))
    batch = types.Batch(*np.zeros((2, 1)), {"pixels": np.zeros(1)}, *np.zeros((2, 1)), labels)
    assert len(jax.tree.leaves(batch)) == 9  # ref_logps is None, so no leaf
