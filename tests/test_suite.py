"""Suite files: defaults, and one-line errors with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from howsure import UserError
from howsure.losses import Confound
from howsure.suite import load_suite, make_method, suite_names

GOOD = """
id = { train = "npz:train.npz", test = "npz:test.npz" }
methods = ["msp", "ener*"]
max_images = 2000

[[backbone]]
name = "resnet56"
use = "cifar_resnet.py:resnet56"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
size = [32, 32]

[[shift]]
data = "npz:folder/dtd.npz"

[corruptions]
types = ["gaussian_noise", "defocus_blur"]

[method.energy]
temperature = 2.0
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


def test_defaults(write, tmp_path):
    suite = load_suite(write(GOOD))
    assert suite.name == "mine"
    assert suite.base == tmp_path
    assert suite.seeds == (0,)
    assert [(s.name, s.group, s.task) for s in suite.shift] == [("dtd", "far", "ood")]
    assert suite.corruptions.severities == (1, 2, 3, 4, 5)
    assert suite.chosen_protocols() == ("none", "same-shift", "leave-one-out")
    methods = suite.chosen_methods()
    assert list(methods) == ["msp", "energy"]
    assert methods["energy"].temperature == 2.0


def test_one_name_stands_for_all_splits(write):
    suite = load_suite(write('id = "cifar10"\n[[backbone]]\nuse = "timm/resnet18.a1_in1k"\n'))
    assert (suite.id.train, suite.id.val, suite.id.test) == ("cifar10",) * 3
    assert suite.backbone[0].name == "timm-resnet18.a1_in1k"
    assert suite.chosen_protocols() == ("none",)


def test_what_stands_twice_counts_once_and_a_mark_of_utf8_not_at_all(write, tmp_path):
    twice = GOOD.replace("max_images", 'seeds = [1, 0, 1]\nprotocols = ["none", "none"]\nmax_images')
    suite = load_suite(write("\ufeff" + twice.replace('name = "resnet56"\n', "").replace('"cifar', '"../cifar')))
    assert suite.seeds == (1, 0)
    assert suite.protocols == ("none",)
    assert suite.backbone[0].name == "cifar_resnet.py-resnet56"


def test_all_corruptions(write):
    assert len(load_suite(write(GOOD.replace('["gaussian_noise", "defocus_blur"]', '"all"'))).corruptions.types) == 19


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_images", "max_image", r"mine\.toml:4: unknown key 'max_image'; did you mean max_images"),
        ("size =", "sise =", r"mine\.toml:11: unknown key 'backbone\.0\.sise'; did you mean size"),
        ("data =", "date =", r"mine\.toml:14: "),
        (
            '"defocus_blur"',
            '"defocus"',
            r"mine\.toml:17: corruptions\.types: unknown corruption 'defocus'; did you mean defocus_blur",
        ),
        ("max_images = 2000", 'max_images = "many"', r"mine\.toml:4: max_images: .*integer"),
        ("max_images = 2000", "max_images = 2000 2", r"mine\.toml: .*line 4"),
        ("max_images = 2000", 'protocols = ["all"]', r"mine\.toml:4: protocols\.0: .*'same-shift'"),
        ("[corruptions]", "[corruption]", r"mine\.toml:16: unknown key 'corruption'; did you mean corruptions"),
        ('use = "cifar_resnet.py:resnet56"\n', "", r"mine\.toml:6: backbone\.0\.use: field required"),
        (
            "size = [32, 32]",
            'size = [32, 32]\n[[backbone]]\nname = "resnet56"\nuse = "x"',
            "two backbones are called 'resnet56'",
        ),
        ('["gaussian_noise", "defocus_blur"]', "5", r"mine\.toml:17: corruptions\.types: input should be a list"),
        ('["gaussian_noise", "defocus_blur"]', "[5]", r"mine\.toml:17: corruptions\.types\.0: .*string"),
        ('["gaussian_noise", "defocus_blur"]', '[["fog"]]', r"mine\.toml:17: corruptions\.types\.0: .*string"),
        ('["gaussian_noise", "defocus_blur"]', "[]", r"corruptions\.types: list should have at least 1 item, not 0"),
        ("[corruptions]\n", "[corruptions]\nseverities = []\n", r"mine\.toml:17: .*severities: list .* least 1 item"),
        ('"npz:folder/dtd.npz"', '"npz:x.npz"\ngroup = ""', r"mine\.toml:15: shift\.0\.group: .*at least 1 character"),
        (
            '"npz:folder/dtd.npz"',
            '"npz:x.npz"\ngroup = "method"',
            r"mine\.toml:15: .*a group cannot be called 'method'",
        ),
        (
            '"npz:folder/dtd.npz"',
            '"npz:x.npz"\ngroup = "a|b"',
            r"mine\.toml:15: .*a group cannot be called 'a\|b'; use letters",
        ),
        ('"npz:folder/dtd.npz"', '"npz:x.npz"\ngroup = "id"', r"mine\.toml:15: .*a group cannot be called 'id'"),
        ('["msp", "ener*"]', '"msp"', r"mine\.toml:3: methods: input should be a list"),
        ("[[backbone]]", "[backbone]", r"mine\.toml:6: backbone: write \[\[backbone\]\]"),
        ("temperature = 2.0", "temperature = 2.0\n[method]\nmsp = 3", r"method\.msp: input should be a table"),
        (
            '"npz:folder/dtd.npz"',
            '"imagefolder:日本語"\n[[shift]]\nname = "x"\ndata = "digits"',
            r"mine\.toml:13: shift\.0\.name: '' cannot be a name; give a `name` of letters",
        ),
        (
            "[corruptions]",
            '[method.x]\nuse = "msp"\n[corruptions]',
            r"mine\.toml: the variant 'x' is not in `methods`",
        ),
        ("id = ", "# ", r"mine\.toml: id: field required"),
    ],
)
def test_mistakes_are_one_line(write, old, new, message):
    with pytest.raises(UserError, match=message) as error:
        load_suite(write(GOOD.replace(old, new, 1)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", ["outliers/test", "train", "synthetic", "gaussian_noise", "mean", "supervision"])
def test_a_shift_never_takes_the_place_of_another_split(write, folder):
    with pytest.raises(UserError, match=r"a shift cannot be called '.*'.*give it another `name`"):
        load_suite(write(GOOD + f'\n[[shift]]\ndata = "imagefolder:{folder}"\n'))
    load_suite(write(GOOD + f'\n[[shift]]\nname = "mine"\ndata = "imagefolder:{folder}"\n'))


def test_unknown_hyper_parameter(write):
    suite = load_suite(write(GOOD.replace("temperature", "temprature")))
    with pytest.raises(UserError, match="unknown hyper-parameter of energy 'temprature'; did you mean temperature"):
        suite.chosen_methods()


def test_unknown_method_and_suite(write):
    with pytest.raises(UserError, match=r"unknown method 'msq'; did you mean .*msp"):
        load_suite(write(GOOD.replace('"msp"', '"msq"'))).chosen_methods()
    with pytest.raises(UserError, match="unknown suite 'digit'; did you mean digits"):
        load_suite("digit")
    with pytest.raises(UserError, match=r"nowhere\.toml: no such suite file"):
        load_suite("nowhere.toml")


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_of_the_package_loads(name):
    suite = load_suite(name)
    assert suite.chosen_methods()
    assert Path(suite.base).is_dir()


VARIANTS = """
[method.confound_detector-2-hot]
use = "confound_detector"
loss = { kind = "confound", hot = 2 }
"""


def test_a_variant_is_a_method_under_a_name_of_its_own(write):
    suite = load_suite(write(GOOD.replace('"msp"', '"msp", "confound_detector*"', 1) + VARIANTS))
    methods = suite.chosen_methods()
    assert methods["confound_detector"] == make_method("confound_detector", {})
    assert methods["confound_detector-2-hot"] == make_method(
        "confound_detector", {"loss": {"kind": "confound", "hot": 2}}
    )
    assert methods["confound_detector-2-hot"].loss == Confound(hot=2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hot = 2", "hit = 2", "unknown setting of the loss confound 'hit'; did you mean hot"),
        ('kind = "confound"', 'kind = "confund"', "unknown loss 'confund'; did you mean confound"),
        ('use = "confound_detector"', 'use = "confound_detectr"', "unknown method 'confound_detectr'"),
        ('{ kind = "confound", hot = 2 }', '"confound"', r"loss = 'confound' must be a loss \(in a suite: { kind"),
    ],
)
def test_mistakes_in_a_variant_are_one_line(write, old, new, message):
    suite = load_suite(write(GOOD.replace('"msp"', '"msp", "confound*"', 1) + VARIANTS.replace(old, new)))
    with pytest.raises(UserError, match=message):
        suite.chosen_methods()


def test_lists_become_tuples():
    assert make_method("energy", {"temperature": 2}).temperature == 2
