import pytest

from dlm.data.detokenize import Lambada, Lm1b, PennTreebank, ScientificPapers, WikiText


@pytest.mark.parametrize(
    ("detokenizer", "stored", "text"),
    [
        (Lm1b(), "he said , it 's fine .", "he said, it's fine."),
        (Lm1b(), 'the " big one " ( or so ) cost $ 5 ?', 'the "big one" (or so) cost $5?'),
        (Lm1b(), "see http : / / a.b / c ; now !", "see http://a.b/c; now!"),
        (Lm1b(), "a [ b ] at £ 3 : yes", "a [b] at £3: yes"),
        (WikiText(), " = = Heading = = \n", " == Heading ==\n"),
        (WikiText(), "1 @,@ 000 @-@ odd 2 @.@ 5 , yes", "1,000-odd 2.5, yes"),
        (WikiText(), '( see that ) " quoted " { x } [ y ]', '(see that) "quoted" {x} [y]'),
        (WikiText(), "boys ' toys . It is 20 ° C", "boys' toys. It is 20°C"),
        (PennTreebank(), "mr. <unk> does n't pay $ N N N times", "mr. ? doesn't pay $1 1 1 times"),
        (
            PennTreebank(),
            "the company 's and\\/or workers ' pay",
            "the company's and/or workers' pay",
        ),
        (Lambada(), "  “hello” he said \n", '\n"hello" he said'),
        (ScientificPapers(), "a 2 @.@ 5 % gain , $ 3 / day .", "a 2.5 % gain, $3/day."),
    ],
)
def test_known_sentences(detokenizer, stored, text):
    assert detokenizer(stored) == text


def test_fingerprints_tell_the_rules_apart():
    prints = {d.fingerprint for d in (Lm1b(), WikiText(), PennTreebank(), Lambada())}
    assert len(prints) == 4
