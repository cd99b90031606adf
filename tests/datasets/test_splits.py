"""Splits by hash. The oracle: the formula written down here once more, and parts pinned as they were published."""

from __future__ import annotations

import hashlib
from collections import Counter
from fractions import Fraction

from headct.datasets import SETS
from headct.datasets.splits import part

PINNED = [*["train"] * 6, "test", "test", "train", "test"]


def test_parts_never_move():
    """Whoever changes one of these lines changes every number that was published on these splits."""
    assert [part("cq500", f"CQ500-CT-{number}") for number in range(10)] == PINNED
    assert SETS["rsna-2019"].split("ID_0b10cbee") == "train"
    assert SETS["sinoct"].split("anon1") == "test"


def test_a_part_is_the_hash_as_a_share():
    for number in range(200):
        text = f"headct-split-1\nsome-set\npatient {number}"
        share = Fraction(int(hashlib.sha256(text.encode()).hexdigest()[:16], 16), 16**16)
        expected = "train" if share < 0.7 else "val" if share < 0.8 else "test"
        assert part("some-set", f"patient {number}") == expected


def test_parts_have_their_shares():
    """Of 20,000 patients, within five standard deviations of the binomial distribution."""
    counts = Counter(part("some-set", str(number)) for number in range(20_000))
    for name, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert abs(counts[name] - 20_000 * share) < 5 * (20_000 * share * (1 - share)) ** 0.5


def test_sets_do_not_share_their_parts_unless_they_share_patients():
    patients = [f"ID_{number:08x}" for number in range(300)]
    assert [SETS["bhsd"].split(one) for one in patients] == [SETS["rsna-2019"].split(one) for one in patients]
    assert [SETS["cq500"].split(one) for one in patients] != [SETS["rsna-2019"].split(one) for one in patients]
