"""The words of contrast, as consoles and typists write them; what each means was decided by hand before it was run."""

from __future__ import annotations

import pytest

from headct.reading.contrast import in_tags, in_words

AGENTS = {
    True: "NON-IONIC 100ML|Nonionic|non ionic|NON IODINATED|Omnipaque 350|C+|IV",
    False: "NON|non|NON CONTRAST|non-contrast|NON IV|NO|NO IV CONTRAST|none given|n/a|-",
}
WORDS = {
    True: "W CONTRAST|W C|W/ C|HEAD W/C|WITH C|AFTER INJ|AFTER INJECTION|nach Injektion|WITH IV|WITH IV, 5 MM|"
    "POST INJECTION|POST-IV|POST CONTRASTE|WITH GADOLINIUM|POST GAD|C-SPINE AND HEAD W CONTRAST",
    False: "WITHOUT IV|NO INJ|NO C|HEAD C-|W/O C-SPINE|CT HEAD NO INJECTION",
    None: "CT HEAD W C-SPINE|CT HEAD W/ C SPINE|HEAD W/C-SPINE|WITH C-COLLAR|HEAD AND C - SPINE|CT HEAD AFTER INJURY|"
    "HEAD TRAUMA WITH INJURY|NO INJURY|WITH IVH|NO IVH|POST IVH|POST INJURY|POST CONCUSSION|POST CONTUSION|"
    "HEAD WITH AGENESIS",
}


@pytest.mark.parametrize(("said", "agent"), [(said, one) for said, some in AGENTS.items() for one in some.split("|")])
def test_an_agent(said, agent):
    assert in_tags(agent, "", None) is said


@pytest.mark.parametrize(("said", "words"), [(said, one) for said, some in WORDS.items() for one in some.split("|")])
def test_whole_words_of_a_description(said, words):
    assert in_words(words) is said
