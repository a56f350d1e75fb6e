"""One property per config: what tells its method from its neighbours, worked by hand.

`PROPERTIES` maps a row to a test of its config's objective, `PLAIN` a row whose objective is plain
DPO to the reason why its own property cannot show in log-probabilities.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import config as config_lib
from rubric_jax import paths, types
from rubric_jax.data import rated
from rubric_jax.models import soup
from rubric_jax.stages import schedule
from rubric_jax.train import setup
from tests import toys
from tests.objectives.conftest import fixture_p

CHOSEN, REJECTED, CORRUPTED, REFERENCE = range(4)  # the branches of fixture P
LOG2 = math.log(2)
DPO = [0.6491593390, 0.7602581947]  # of fixture P at beta 0.1


class Bound:
    """A config's objective, evaluated on hand-made log-probabilities in float64."""

    def __init__(self, values, **weights):
        self.config = config_lib.build(values)
        spec = {entry: dict(knobs) for entry, knobs in self.config.objective.items()}
        for entry, weight in weights.items():
            spec[entry]["weight"] = weight
        self.objective = setup.objective(config_lib.build({**values.to_dict(), "objective": spec}))
        self.branches = self.config.data.branches

    def __call__(self, logps, labels):
        """Loss [B]; the state is that of the first step."""
        with jax.enable_x64(True):
            built = self.objective
            loss, _, _ = built(built.knobs, built.init_state(), logps, labels)
            return np.asarray(loss)

    def slopes(self, logps, labels):
        """d loss / d log-probability of each branch's first token. [B, N]."""
        with jax.enable_x64(True):
            built = self.objective

            def total(shift):
                policy = jnp.asarray(logps.policy).at[:, :, 0].add(shift)
                seen = logps._replace(policy=policy)
                return built(built.knobs, built.init_state(), seen, labels)[0].sum()

            return np.asarray(jax.grad(total)(jnp.zeros(logps.policy.shape[:2])))

    def pairs(self, *columns):
        """Fixture P: for each branch of the config the fixture's branch with that number."""
        logps, labels = fixture_p()
        take = np.asarray(columns or range(len(self.branches)))
        kl = types.TokenKL(*(part[:, take] for part in logps.kl))
        rows, axes = len(labels.weight), max(len(self.config.data.axes), 1)
        labels = labels._replace(
            rewards=np.zeros((rows, len(take), axes)), axis=np.zeros(rows, np.int32)
        )
        return types.Logps(*(part[:, take] for part in logps[:3]), kl, self.spans(kl)), labels

    def spans(self, like, **tables):
        """The spans that the objective reads: nowhere, or as [B, N, T] says, by name."""
        nowhere = np.full(like[0].shape, types.OUTSIDE)
        return {name: tables.get(name or "plain", nowhere) for name in self.objective.spans} or None

    def ratios(self, ratios, rewards=None):
        """One row of one-token responses with these log-ratios; further branches are absent.

        rewards [n] are put on the first axis; [n, A] on all.
        """
        given, count = np.asarray(ratios, float), len(self.branches)
        delta, mask = np.zeros((1, count, 1)), np.zeros((1, count, 1))
        delta[0, : len(given), 0], mask[0, : len(given)] = given, 1.0
        table = np.zeros((1, count, max(len(self.config.data.axes), 1)))
        if rewards is not None:
            rewards = np.asarray(rewards, float)
            rewards = rewards[:, None] if rewards.ndim == 1 else rewards
            table[0, : len(given), : rewards.shape[1]] = rewards
        ref = np.full_like(delta, -1.0)
        labels = types.Labels(table, np.ones(1), np.zeros(1), np.zeros(1, np.int32))
        zeros = types.TokenKL(np.zeros_like(ref), np.zeros_like(ref))
        return types.Logps(
            ref + delta, ref, mask, zeros, self.spans(zeros), behaviour=ref + delta
        ), labels


def close(found, expected, tolerance=1e-6):
    # Knobs are float32, so a beta of 0.1 is off by 1e-9, and 1000 tokens by 1e-6.
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def same(logps):
    """The policy is the reference."""
    return logps._replace(policy=logps.ref)


def mmedpo(values):
    bound = Bound(values)
    logps, labels = bound.pairs(CHOSEN, REJECTED)
    close(bound(logps, labels._replace(weight=np.array([0.5, 2.0]))), [0.3245796695, 1.5205163894])
    nothing = bound.slopes(logps, labels._replace(weight=np.zeros(2)))
    close(nothing, np.zeros((2, 2)))


def two_terms(values):
    """Rows 2, 4, 10: the second term has the same winner and another loser."""
    bound = Bound(values)
    close(bound(*bound.pairs(CHOSEN, REJECTED, CORRUPTED)), [1.3079188946, 1.4584178752])


def two_pictures(values):
    two_terms(values)
    bound = Bound(values)  # a policy that does not see: the second term is log 2 without gradient
    logps, labels = bound.pairs(CHOSEN, REJECTED, CHOSEN)
    close(bound(logps, labels), np.add(DPO, LOG2))
    slopes = bound.slopes(logps, labels)
    close(slopes[:, 0] + slopes[:, 2], [-0.0477515175, -0.0532454306])


def two_negatives(values):
    two_terms(values)
    bound = Bound(values)
    close(bound(*bound.pairs(CHOSEN, CORRUPTED, REJECTED)), [1.3079188946, 1.4584178752])


def mrdpo(values):
    bound = Bound(values)
    logps, labels = bound.pairs(CHOSEN, REJECTED, REFERENCE)
    # The reference gives the third response 2.1 nats over 3 tokens.
    close(bound(same(logps), labels).mean(), LOG2 + 0.1 * 0.7)
    # The policy gives it 2.1 nats as well; a row has 2 / 3 of the likelihood per token.
    close(bound(logps, labels), np.add(DPO, [0.1 * 1.0 * 2 / 3, 0.1 * 1.1 * 2 / 3]))
    close(bound.slopes(logps, labels)[:, 2], [-0.1 * 2 / 3] * 2)


def ospo(values):
    bound = Bound(values)
    logps, labels = bound.pairs(CHOSEN, REJECTED)
    close(bound(logps, labels), [3.1281215137 + 2 * 3.5 / 3, 0.5063600460 + 2 * 0.55])
    assert not bound.objective.needs_reference
    whole = bound.spans(logps.kl, plain=np.ones(logps.mask.shape))  # objects all over
    close(bound(logps._replace(spans=whole), labels), bound(logps, labels))
    first = np.full(logps.mask.shape, types.OUTSIDE)
    first[:, 0, 0] = 1.0  # chosen's first token counts twice, and once in the likelihood
    means = [-(2 * 1.0 + 0.5 + 2.0) / 4 + 4.2 / 4, -(2 * 0.3 + 0.8) / 3 + 3.4 / 3]
    pair = np.log1p(np.exp(-(5 * np.array(means) - 2.5)))
    found = bound(logps._replace(spans=bound.spans(logps.kl, plain=first)), labels)
    close(found, pair + 2 * np.array([3.5 / 3, 0.55]))


def uv_cot(values):
    bound = Bound(values)
    logps, labels = bound.pairs(CHOSEN, REJECTED)
    close(bound(logps, labels), DPO)
    close(bound(logps, labels._replace(margin=np.full(2, 0.15))), [0.7235971131, 0.8429153336])


def pami(values):
    bound = Bound(values)
    logps, labels = bound.ratios([0.4, -0.5, 0.1, 0.0])
    for far, logit in ((1, 0.09), (2, 0.03), (3, 0.04)):
        js = np.full((1, 4, 1), 0.1)
        js[0, far] = 0.3
        seen = logps._replace(js=js)
        close(bound(seen, labels), [math.log1p(math.exp(-logit))])
        slopes = bound.slopes(seen, labels)[0]
        assert np.flatnonzero(slopes).tolist() == [0, far]


def adpo(values):
    bound = Bound(values)
    close(bound(*bound.pairs(CHOSEN, REJECTED)), [0.7658260057, 0.8152581947])


def dcd(values):
    supervised(values)
    trainable = config_lib.build(values).optimizer.trainable
    for path in paths.flatten(jax.eval_shape(toys.model()[0].init, jax.random.key(0))):
        assert paths.lookup(trainable, path) == path.startswith("projector/")


def supervised(values):
    bound = Bound(values)
    close(bound(*bound.pairs(CHOSEN)), [3.5 / 3, 0.55])
    assert not bound.objective.needs_reference


def molpo(values):
    bound = Bound(values)  # equal inputs: half of a hinge of 1 + gamma, without gradient
    logps, labels = bound.pairs(CHOSEN, CHOSEN)
    close(bound(logps, labels), np.add([3.5 / 3, 0.55], 1.0))
    close(bound.slopes(logps, labels).sum(axis=1), [-1 / 3, -1 / 2])
    gaps = np.array([4.6 / 3 - 3.5 / 3, 2.3 / 2 - 1.1 / 2])  # of mean log-probabilities
    expected = np.add([3.5 / 3, 0.55], 0.5 * (2 - gaps))
    close(bound(*bound.pairs(CHOSEN, CORRUPTED)), expected)


def haven(values):
    bound = Bound(values)
    logits = 2 * np.array([0.4 / 3 + 0.5 / 4, -0.4 / 2 - 0.9 / 3])
    logps, labels = bound.pairs(CHOSEN, REJECTED)  # nothing corrected: length-normalised DPO
    close(bound(logps, labels), np.log1p(np.exp(-logits)))
    corrected = np.full(logps.mask.shape, types.OUTSIDE)
    corrected[:, 0, 0] = corrected[:, 1, 1] = 1.0  # gamma = 2 in sums and lengths
    sides = [0.6 / 4 + 0.8 / 5, -0.5 / 3 - 1.1 / 4]
    found = bound(logps._replace(spans=bound.spans(logps.kl, plain=corrected)), labels)
    close(found, np.log1p(np.exp(-2 * np.array(sides))))


def one_conditional(values):
    bound = Bound(values)
    close(bound(*bound.pairs(CHOSEN, CORRUPTED)), [0.6587595555, 0.6981596805])
    logps, labels = bound.pairs(CHOSEN, CHOSEN)
    close(bound.slopes(logps, labels).sum(axis=1), [0.0, 0.0])


def finsage(values):
    one_conditional(values)
    layout = types.Layout.of(config_lib.build(values).data.branches)
    assert layout.responses == ("answer", "answer")


def mapl(values):
    bound = Bound(values)
    intra = np.array([0.6587595555, 0.6981596805])
    even = bound.pairs(CHOSEN, REJECTED, CHOSEN, CORRUPTED, CHOSEN, REJECTED)
    close(bound(*even), np.add(DPO, intra) + LOG2)
    # The favoured pair the other way round: its gap lies below the plain one by twice as much.
    turned = bound.pairs(CHOSEN, REJECTED, CHOSEN, CORRUPTED, REJECTED, CHOSEN)
    inter = np.log1p(np.exp(2 * np.array([0.09, -0.13])))
    close(bound(*turned), np.add(DPO, intra) + inter)


def mpo(values):
    bound = Bound(values)  # the baseline of the first batch is 0.01
    close(bound(*bound.pairs(CHOSEN, REJECTED)), [1.9543654958, 1.4486878788])


def harmo(values):
    bound = Bound(values)
    expected = -np.array([0.625, -0.375, 0.125, -0.375]) / 4
    found = bound.slopes(*bound.ratios(np.zeros(4), [1.0, 0.0, 0.5, 0.0]))[0]
    close(found, [*expected, 0, 0, 0, 0])
    doubled = bound.slopes(*bound.ratios(np.zeros(4), [2.0, 0.0, 1.0, 0.0]))[0]
    close(doubled, 2 * found)
    # Answer, format and length count alike: sums 3, 1, 2 and 2 - 0.5.
    parts = [[1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.5]]
    expected = -np.array([1.125, -0.875, 0.125, -0.375]) / 4
    close(bound.slopes(*bound.ratios(np.zeros(4), parts))[0, :4], expected)


def per_branch(logps, **scores):
    """The log-probabilities with heads that gave each branch these vectors, in every row alike."""
    rows = len(logps.mask)
    found = {name: np.repeat(np.array([value], float), rows, 0) for name, value in scores.items()}
    return logps._replace(heads=found)


def sparsepo(values):
    bound = Bound(values)
    logps, labels = bound.pairs(CHOSEN, REJECTED)
    ones = np.ones_like(logps.mask)[..., None]
    kept = logps._replace(heads={"mask": ones, "kl_mask": 0 * ones})
    close(bound(kept, labels), DPO)
    # The fixture's divergences: 0.525 on chosen and 0.476 on rejected.
    full = logps._replace(heads={"mask": ones, "kl_mask": ones})
    close(bound(full, labels)[0], math.log1p(math.exp(-(0.09 + 0.1 * (0.525 - 0.476)))))
    closed = logps._replace(heads={"mask": 0 * ones, "kl_mask": 0 * ones})
    close(bound.slopes(closed, labels), np.zeros((2, 2)))
    assert bound.config.optimizer.scale[0] == (r"heads/.*", 100.0)


def reward_head(values):
    """Rows 36, 64: Bradley-Terry on a head, and no reference."""
    bound = Bound(values)
    logps, labels = bound.pairs(CHOSEN, REJECTED)
    close(bound(per_branch(logps, reward=[[0.7], [-0.4]]), labels), [0.2873353251] * 2)
    assert not bound.objective.needs_reference
    assert bound.objective.heads == ("reward",)


def degrees(values):
    bound = Bound(values, dpo=0.0, degree_chosen=1.0, degree_rejected=0.0)
    logps, labels = bound.ratios([0.0] * 6)
    right = 9.0 * np.eye(3)[[0, 1, 2] * 2]
    wrong = np.concatenate([9.0 * np.eye(3)[[1, 2, 0]], right[:3]])
    close(bound(per_branch(logps, degree=right), labels), [math.log1p(2 * math.exp(-9))])
    close(bound(per_branch(logps, degree=wrong), labels), [9 + math.log1p(2 * math.exp(-9))])
    even = Bound(values)
    close(even(per_branch(logps, degree=0 * right), labels), [LOG2 + 0.1 * 2 * math.log(3)])


def pal(values):
    bound = Bound(values)
    logps, labels = bound.ratios([0.0, 0.0])
    points, prototypes = np.zeros((2, 64)), np.zeros((2, 128))
    points[0, 0] = points[1, 1] = prototypes[:, 0] = prototypes[:, 64 + 1] = 1.0
    logps = per_branch(logps, point=points, prototypes=prototypes)
    users = 800.0 * np.array([[1, 0], [0, 1], [0, 0], [0, 0]])  # the first, the second, both, both
    logps.heads["users"] = users
    for user, logit in ((0, 14.3), (1, -14.3), (2, 0.0)):
        row = labels._replace(axis=np.array([user], np.int32))
        close(bound(logps, row), [math.log1p(math.exp(-logit))])


def micro(values):
    bound = Bound(values)
    logps, labels = bound.ratios([0.0, 0.0])
    experts, router = np.zeros((2, 10)), np.full((2, 10), -800.0)
    experts[0, :3], router[:, :3] = [0.5, -0.2, 1.0], np.log([0.6, 0.3, 0.1])
    close(bound(per_branch(logps, experts=experts, router=router), labels), [0.0929457480])
    rules = bound.config.optimizer.trainable
    assert paths.lookup(rules, "heads/router/kernel")
    assert not paths.lookup(rules, "decoder/norm/scale")


def modpo(values):
    bound = Bound(values)
    logps, labels = bound.pairs(CHOSEN, REJECTED)
    # Equal rewards: DPO with beta / weight of the ordering axis = 0.1 / 0.2.
    close(bound(logps, labels), [0.4932489460, 1.0700553357])
    labels.rewards[:, 0, 1] = 1.0  # better elsewhere too: a larger gap is asked for
    logits = (np.array([0.09, -0.13]) - 2.0 * 0.2) / 0.2
    close(bound(logps, labels), np.log1p(np.exp(-logits)))
    labels.rewards[:, 0, 0] = 0.7  # the ordering axis is not read
    close(bound(logps, labels), np.log1p(np.exp(-logits)))


def vision_r1(values):
    bound = Bound(values)  # equal rewards: k3 alone
    found = bound(*bound.ratios(np.full(4, -0.2), [1.0, 1.0, 1.0, 1.0]))
    close(found, [0.04 * 0.0214027582])
    slopes = bound.slopes(*bound.ratios(np.zeros(4), [[1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 0]]))
    # Sums 3, 2, 2, 0: mean 1.75, standard deviation sqrt(4.75 / 3).
    close(slopes[0], -np.array([1.25, 0.25, 0.25, -1.75]) / (math.sqrt(4.75 / 3) + 1e-4) / 4)


def smpo(values):
    bound = Bound(values)
    logps, labels = bound.ratios([0.4, -0.5], [0.9, 0.4])
    close(bound(logps, labels), np.log1p(np.exp(-(2 * 0.6224593312 - 1) * 0.9)))
    tied = bound.ratios([0.4, -0.5], [0.5, 0.5])
    close(bound(*tied), [LOG2])
    close(bound.slopes(*tied), [[0.0, 0.0]])


def robust(values):
    bound = Bound(values)
    right = bound(*bound.pairs(CHOSEN, REJECTED))
    flipped = bound(*bound.pairs(REJECTED, CHOSEN))
    close(right, [0.6379093390, 0.7765081947])
    close(0.9 * right + 0.1 * flipped, DPO)


def rationales(values):
    bound = Bound(values)
    logps, labels = bound.pairs(CHOSEN, REJECTED, REFERENCE)
    close(bound(logps, labels), np.add(DPO, [0.001 * 1.0, 0.001 * 1.1]))
    close(bound.slopes(logps, labels)[:, 2], [-0.001, -0.001])
    assert types.Layout.of(bound.branches).context_of == (0, 0, 1)


def rpo(values):
    bound = Bound(values)
    close(bound(*bound.pairs(CHOSEN, REJECTED)), [0.6888323055, 0.6997233054])


def flex(values):
    bound = Bound(values)
    logps, labels = bound.pairs(CHOSEN, REJECTED)
    close(bound(logps, labels), [0.6539469673, 0.7507143617])
    slopes = bound.slopes(logps, labels)
    close(slopes[:, 1] / slopes[:, 0], [-0.8, -0.8])


def rankdpo(values):
    bound = Bound(values)  # beta x log-ratio = 0.3, 0.1, 0.25, -0.2
    ratios, wins = np.array([3.0, 1.0, 2.5, -2.0]), np.array([1, 2 / 3, 1 / 3, 0])
    close(bound(*bound.ratios(ratios, wins)), [1.0322412327])
    order = [2, 0, 3, 1]
    close(bound(*bound.ratios(ratios[order], wins[order])), [1.0322412327])


def rrpo(values):
    bound = Bound(values)
    logps, labels = bound.pairs(CHOSEN, REJECTED)
    none = types.TokenKL(*(0 * part for part in logps.kl))
    close(bound(logps._replace(kl=none), labels), [LOG2, LOG2])  # nothing differs
    close(bound.slopes(logps, labels), np.zeros((2, 2)))
    logps = logps._replace(spans=bound.spans(logps.kl, plain=np.ones(logps.mask.shape)))
    close(bound(same(logps)._replace(kl=none), labels), [LOG2, LOG2])
    close(bound(logps, labels)[0], DPO[0] + 0.01 * 0.525)  # added: divergence costs
    last = np.full(logps.mask.shape, types.OUTSIDE)
    last[0, :, 2] = 1.0  # row 0 differs in the third token: -0.2 against 0.3
    logps = logps._replace(spans=bound.spans(logps.kl, plain=last))
    close(bound(logps, labels)[0], math.log1p(math.exp(0.1 * 0.5)) + 0.01 * 0.525)


def lambda_harmonic(values):
    bound = Bound(values)  # equal rewards: the mean of both labels, and the likelihood
    pair = [(0.6491593390 + 0.7391593390) / 2, (0.7602581947 + 0.6302581947) / 2]
    close(bound(*bound.pairs(CHOSEN, REJECTED)), np.add(pair, [3.5 / 3, 0.55]))
    # A reward of 0.8 against 0.3 makes p = sigma(0.5); the likelihood of one token is 0.6 nats.
    p = 0.6224593312
    expected = p * 0.6491593390 + (1 - p) * 0.7391593390 + 0.6
    close(bound(*bound.ratios([0.4, -0.5], [0.8, 0.3])), [expected])


def opa(values):
    bound = Bound(values)
    logps, labels = bound.pairs(CHOSEN, CHOSEN, REJECTED, CORRUPTED, CORRUPTED)
    terms = 0.6491593390 + 0.2 * 0.6587595555 + 0.6733471672
    close(bound(logps, labels)[0], 2 * terms)
    blind, labels = bound.pairs(CHOSEN, CHOSEN, REJECTED, CHOSEN, CHOSEN)
    close(bound(blind, labels)[0], 2 * (0.6491593390 + 0.2 * LOG2 + 0.6733471672))
    # Every token of the gravest kind: the edit's pair has 2.5 times the logit. Every token of
    # recognition: its term of the picture has 3 times the logit.
    ones = np.ones(logps.mask.shape)
    logps = logps._replace(spans=bound.spans(logps.kl, severity=2.5 * ones, recognition=ones))
    seen = -math.log(math.expm1(0.6587595555))  # the logit of the picture's pair
    more = math.log1p(math.exp(-2.5 * 0.09)) - 0.6491593390
    more += 0.2 * (math.log1p(math.exp(-3 * seen)) - 0.6587595555)
    close(bound(logps, labels)[0], 2 * terms + more)


def apo(values):
    close(Bound(values)(*Bound(values).pairs(CHOSEN, REJECTED))[0], math.log1p(math.exp(-0.009)))
    now, before = {"w": jnp.asarray([1.5, 1.0])}, {"w": jnp.asarray([1.0, 2.0])}
    close(soup.soup([now, before], [1.3, -0.3])["w"], [1.65, 0.7])


def stage_by_stage(values):
    """The configs of a schedule's stages; the policy before stage k is Pk, and its reference."""
    plain(values)
    config = config_lib.build(values)
    made = [schedule.stage_config(config, v, f"P{k}") for k, v in enumerate(config.schedule)]
    assert [one.model.checkpoint for one in made] == [f"P{k}" for k in range(len(made))]
    assert [one.model.reference for one in made] == [f"P{k}" for k in range(len(made))]
    return made


def curry(values):
    made = stage_by_stage(values)
    for one, level in zip(made, (1, 2, 3), strict=True):
        ways = rated.bind(one.data.rated, one.data.axes)
        # Ranked 2, 0, 1, 3: the best meets the worst first.
        ratings = {k: {"rating": rating} for k, rating in enumerate((0.6, 0.3, 0.9, 0.1))}
        record = {f"response_{k}": str(k) for k in ratings}
        record |= {f"response_{k}_rewards": rating for k, rating in ratings.items()}
        pairs = [(row["level"], row["chosen"], row["rejected"]) for row, _ in ways.rows(record, "")]
        inside = [p for p in pairs if one.data.view["low"] <= p[0] <= one.data.view["high"]]
        assert inside == [(level, "2", {1: "3", 2: "1", 3: "0"}[level])]


def temple(values):
    made = stage_by_stage(values)
    assert [one.data.view.get("low") for one in made] == [1, 2, 3, 4, None]
    assert [list(one.objective) for one in made] == [["dpo"]] * 4 + [["nll"]]


def fspo(values):
    bound = Bound(values)  # least at a gap of 1 / (2 beta) = 50
    close(bound(*bound.ratios([30.0, -20.0])), [0.0], 1e-4)
    close(bound(*bound.ratios([30.0, -19.0])), [1.0], 1e-4)
    supervised_part = Bound(values, ipo=0.0, nll=1.0)
    close(supervised_part(*supervised_part.pairs(CHOSEN, REJECTED)), [3.5 / 3, 0.55])


def hypo(values):
    bound = Bound(values)
    logps, labels = bound.ratios([0, 0, 0.4, 0, 0, 0])
    assert not bound.objective.needs_rewards
    # 0.05 / 4 x (own log-ratio - mean of the others'), on the samples alone.
    expected = 0.05 / 4 * np.array([0.4, -0.4 / 3, -0.4 / 3, -0.4 / 3])
    close(bound.slopes(logps, labels)[0, 2:], expected)
    close(bound.slopes(logps, labels)[0, :2], [-0.05, 0.05])


def critic_r1(values):
    bound = Bound(values)  # right and well-formed, right, well-formed, neither: 1, 0.9, 0.1, 0
    slopes = bound.slopes(*bound.ratios(np.zeros(4), [[1, 1], [1, 0], [0, 1], [0, 0]]))[0, :4]
    spread = math.sqrt((0.25 + 0.16 + 0.16 + 0.25) / 3) + 1e-4
    close(slopes, -np.array([0.5, 0.4, -0.4, -0.5]) / spread / 4)
    close(bound(*bound.ratios(np.full(4, -0.2), np.ones((4, 2)))), [0.01 * 0.0214027582])


def think(values):
    bound = Bound(values)
    logps, labels = bound.ratios(np.zeros(8), np.ones((8, 2)))
    close(bound.slopes(logps, labels), np.zeros((1, 8)))
    close(bound(*bound.ratios(np.full(8, -0.2), np.ones((8, 2)))), [0.04 * 0.0214027582])


def vpo(values):
    bound = Bound(values)
    logps, labels = bound.pairs(CHOSEN, REJECTED)
    close(bound(logps, labels), [0.6291593390, 0.7802581947])
    # Pessimism raises the calibration answer: 0.05 on top of DPO's own pull.
    close(bound.slopes(logps, labels)[:, 0], [-0.0977515175, -0.1032454306])


def bridge(values):
    bound = Bound(values)
    close(bound(*bound.ratios([10.0])), [-0.0975])  # z = 0.1
    close(bound.slopes(*bound.ratios([200.0])), [[0.0]])  # z = 2
    close(bound.slopes(*bound.ratios([0.0])), [[-0.01]])  # as SFT, times the scale


def tpo_trees(values):
    bound = Bound(values)

    def loss(parts, rewards, cosines):
        """Of responses of two steps of a token each."""
        logps, labels = bound.ratios(np.zeros(len(parts)), rewards)
        ref, mask = (np.repeat(part, 2, axis=2) for part in (logps.ref, logps.mask))
        policy = ref.copy()
        policy[0, : len(parts)] += parts
        steps = types.Steps(
            np.broadcast_to(np.arange(2), ref.shape), np.broadcast_to(cosines, (1, 10, 10, 2))
        )
        return bound(types.Logps(policy, ref, mask, steps=steps), labels)

    # Steps that have nothing in common: its LambdaRank alone.
    ratios = np.array([0.6, 0.2, 0.5, -0.4])
    parts = np.stack([ratios, 0 * ratios], axis=1)
    close(loss(parts, [1, 2 / 3, 1 / 3, 0], np.zeros(2)), [0.9481193472])
    # Gaps of 0 and 0.4 at cosines of 1 and 0.5, between ranks 1 and 2.
    pair = loss([[0.7, 0.1], [0.7, -0.3]], [1, 0], np.array([1.0, 0.5]))
    close(pair, [(1 / math.log(2) - 1 / math.log(3)) * 0.5543552445])


def ranklist(values):
    bound = Bound(values)

    def loss(scores, rewards):
        logps, labels = bound.ratios(np.zeros(len(scores)), rewards)
        padded = np.zeros((4, 1))
        padded[: len(scores), 0] = scores
        return bound(per_branch(logps, score=padded), labels)

    close(loss([0.3, 0.1, 0.25, -0.2], [3.0, 2.0, 1.0, 0.5]), [1.8623448632])
    close(loss([0.3, 0.1], [0.59, 0.5]), [0.0])  # a near-tie
    close(loss([0.3, 0.1], [0.61, 0.5]), [math.log1p(math.exp(-0.2))])
    stages = [stage["objective"]["ranklist"]["skips"] for stage in bound.config.schedule]
    assert stages == [1, 2, 3]


def spo_step(values):
    bound = Bound(values)
    close(bound(*bound.ratios([0.3, -0.02])), [0.2743355128])
    clipped = bound.ratios([0.3, -0.4])
    close(bound(*clipped), [0.1261308799])
    close(bound.slopes(*clipped), [[0.0, 0.0]])


def suboptimal(values):
    """Weighted regression pushes nothing down; the others do. By itself the config runs rloo."""
    rewards = [1.0, 0.5, 0.5, 0.0]
    advantages = np.array([2 / 3, 0, 0, -2 / 3]) * 0.2  # the reward counts 0.2, by the weights
    close(Bound(values).slopes(*Bound(values).ratios(np.zeros(4), rewards))[0], -advantages / 4)
    for arm, pushes in (("rwr", False), ("rloo", True), ("grpo", True)):
        bound = Bound(values, **{"rwr": 0.0, "rloo": 0.0, "grpo": 0.0, arm: 1.0})
        slopes = bound.slopes(*bound.ratios(np.zeros(4), rewards))
        assert slopes[0, 0] < 0
        assert (slopes.max() > 1e-6) == pushes
        if arm == "rwr":  # the rewards over the temperature are the rewards above
            close(slopes[0], -np.exp(rewards) / np.exp(rewards).sum())


def pro(values):
    bound = Bound(values)
    mean, rewards = np.array([-0.8, -1.0, -0.9, -1.4]), np.array([3.0, 2.0, 1.0, 0.5])
    logps, labels = bound.ratios(mean + 1, rewards)
    logps = types.Logps(*(np.repeat(part, 10, axis=2) for part in logps[:3]))
    # The fixture's best answer has 8 nats: ten tokens of 0.8.
    close(bound(logps, labels), [7.0326101444])
    order = [3, 0, 2, 1]
    logps = types.Logps(*(part[:, order] for part in logps[:3]))
    close(bound(logps, labels._replace(rewards=labels.rewards[:, order])), [7.0326101444])
    assert not bound.objective.needs_reference


def insights(values):
    arms = ("dpo", "ipo", "kto", "cpo")
    by_default = Bound(values)
    close(by_default(*by_default.pairs(CHOSEN, REJECTED, CORRUPTED)), DPO)
    for arm, expected in zip(arms, ([LOG2] * 2, [25.0] * 2, [1.0] * 2, None), strict=True):
        bound = Bound(values, **{name: float(name == arm) for name in arms})
        logps, labels = bound.pairs(CHOSEN, REJECTED, CORRUPTED)
        if expected is None:  # without a reference
            close(bound(logps, labels), [1.8254262222, 1.1347451567])
        else:  # at policy = reference
            close(bound(same(logps), labels), expected)
            assert np.all(bound.slopes(same(logps), labels)[:, 0] < 0)
        if arm == "kto":  # the mean log-ratio of the third branch is below 0, so the baseline is 0
            sides = np.exp([[0.04, 0.05], [-0.04, -0.09]])
            close(bound(logps, labels), (1 / (1 + sides)).sum(axis=1))


def plain(values):
    bound = Bound(values)
    logps, labels = bound.pairs(CHOSEN, REJECTED)
    close(bound(logps, labels), DPO)
    close(bound(same(logps), labels), [LOG2, LOG2])


def carm(values):
    bound = Bound(values)
    logps, labels = bound.ratios(np.zeros(4))
    blind = per_branch(logps, reward=[[0.7], [-0.4], [0.7], [-0.4]])
    close(bound(blind, labels), [0.2873353251 + 1.3873353251])  # right once, wrong once
    reading = per_branch(logps, reward=[[0.7], [-0.4], [-0.4], [0.7]])
    close(bound(reading, labels), [2 * 0.2873353251])


PROPERTIES = {
    1: mmedpo,
    2: two_pictures,
    4: two_negatives,
    5: mrdpo,
    7: ospo,
    9: uv_cot,
    10: two_pictures,
    12: pami,
    13: adpo,
    17: dcd,
    18: molpo,
    19: haven,
    20: mpo,
    30: finsage,
    31: harmo,
    32: sparsepo,
    33: mapl,
    34: modpo,
    36: reward_head,
    38: vision_r1,
    41: smpo,
    42: robust,
    44: degrees,
    46: rationales,
    47: rpo,
    49: flex,
    50: rankdpo,
    52: pal,
    53: rrpo,
    54: lambda_harmonic,
    56: opa,
    57: apo,
    58: fspo,
    59: hypo,
    60: critic_r1,
    61: think,
    62: vpo,
    63: bridge,
    64: reward_head,
    66: carm,
    67: tpo_trees,
    68: ranklist,
    70: spo_step,
    71: supervised,
    73: suboptimal,
    74: temple,
    75: pro,
    76: curry,
    77: micro,
    78: insights,
}
# Their property is one of how data are made, or of a model, not of the loss.
PLAIN = {
    11: "that a step alone is trained on: prompts are never in the mask (tests/data)",
    14: "the Jaccard score of a critique: tests/judges/test_rules.py",
    15: "sifting ten ranked samples: not here",
    16: "generation under masked image tokens: not here",
    21: "decoding with the experts' logits: not here",
    24: "best against worst by the rubric's total: tests/recipes",
    27: "rendering layouts: not here",
    29: "M3ID's logits: tests/test_contrasts.py",
    35: "the share of attention: not here",
    45: "the critique is not in the prompt: the user's columns",
    55: "floors and gaps of seven scores: not here",
    69: "the probe of the sources: not here",
}
