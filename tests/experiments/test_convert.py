"""Weights in and out, by the command line and by what it is made of."""

import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import LLAMA, QUIET, VOCAB, command, gin_of, planned, published

from experiments import configs, convert, experiment, origins, pretrained, writing
from experiments.folders import RunError, RunFolder
from research.attention.masks import Causal, Prefix, Sinks, Window
from research.attention.positions import Learned, T5Bias
from research.data.corpora import Factbook
from research.data.layouts import Split
from research.data.objectives import PrefixLM
from research.data.pretrained import FromFile
from research.data.subwords import tokenizer_json
from research.data.tokenizers import Bytes, Symbols
from research.interop import architecture, hub
from research.interop.weights import WeightsError
from research.models.config import BlockSpec, EmbeddingConfig, StackConfig
from research.models.families import DecoderConfig, EncoderDecoderConfig
from research.models.paths import named

LOCAL = StackConfig(
    layers=2,
    width=32,
    heads=4,
    pattern=(BlockSpec(), BlockSpec(window=Window(8)), BlockSpec(mask=Causal() & (Sinks(2) | Window(4)))),
)
TWO = EncoderDecoderConfig(
    encoder=dataclasses.replace(LLAMA.stack, layers=3, positions=Learned(length=64)), decoder=LLAMA.stack
)


def same(one, other):
    first, second = named(one), named(other)
    assert first.keys() == second.keys()
    for path, leaf in first.items():
        assert np.asarray(leaf).tobytes() == np.asarray(second[path]).tobytes(), path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": DecoderConfig(stack=LOCAL, mask=Prefix())},
        {"model": TWO, "split": True},
        {"init_from": pretrained.Parameters(place="runs/it's", differing=("DecoderConfig.mask",))},
    ],
    ids=["decoder", "pattern", "two stacks", "start"],
)
def test_the_gin_text_of_an_experiment_makes_it_again(changes, tmp_path):
    changes = dict(changes)
    one = planned(Factbook(), LLAMA)
    if changes.pop("split", False):
        data = dataclasses.replace(one.data, objective=PrefixLM(), layout=Split())
        one = dataclasses.replace(one, model=TWO, data=data)
    one = dataclasses.replace(one, **changes)
    file = tmp_path / "config.gin"
    file.write_text(gin_of(one))
    found, operative = experiment.load([str(file)])
    assert found == one
    file.write_text(operative)
    assert experiment.load([str(file)])[0] == one


def test_what_is_bound_later_reaches_all_values_of_a_class(tmp_path):
    one = planned(Factbook(), LLAMA)
    data = dataclasses.replace(one.data, objective=PrefixLM(), layout=Split())
    (tmp_path / "config.gin").write_text(gin_of(dataclasses.replace(one, model=TWO, data=data)))
    found, _ = experiment.load([str(tmp_path / "config.gin")], ["StackConfig.dropout=0.25"])
    assert (found.model.encoder.dropout, found.model.decoder.dropout) == (0.25, 0.25)
    assert (found.model.encoder.layers, found.model.decoder.layers) == (3, 2)


def test_a_value_without_a_literal_is_refused():
    with pytest.raises(configs.ConfigError, match="has no gin literal"):
        gin_of(planned(Factbook(), DecoderConfig(stack=StackConfig(backend=len))))


def test_from_a_published_model_to_a_run_and_back_nothing_changes_in_a_bit(tmp_path):
    place = published(tmp_path / "published")
    origin = origins.opened(str(place), None)
    convert.to_run(origin, tmp_path / "run", QUIET)
    run = origins.opened(str(tmp_path / "run"), None)
    assert convert.kind(run) == "run"
    same(run.read(), origin.read())
    assert convert.to_hub(run, tmp_path / "again", None, QUIET) == "llama"
    once, twice = (load_file(folder / "model.safetensors") for folder in (place, tmp_path / "again"))
    assert once.keys() == twice.keys()
    assert all(once[name].tobytes() == twice[name].tobytes() for name in once)
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (place, tmp_path / "again")
    )
    ids = {f"{role}_token_id": getattr(Bytes(), role) for role in ("pad", "bos", "eos")}
    assert after == before | ids
    convert.to_run(origins.opened(str(tmp_path / "again"), None), tmp_path / "second", QUIET)
    second = origins.opened(str(tmp_path / "second"), None)
    same(second.read(), origin.read())
    assert second.model == run.model
    text = "a line, \u00e9\u4e16 \U0001f600\n"
    for one in (run, second):
        assert one.tokenizer().encode(text).tolist() == Bytes().encode(text).tolist()
        assert one.tokenizer().layout[:4] == Bytes().specials()[:4]
        assert one.tokenizer().sentinels == Bytes().sentinels


T5 = EncoderDecoderConfig(
    **{
        side: StackConfig(
            layers=2, width=16, heads=2, hidden=32, activation="relu", scale=1.0, positions=T5Bias()
        )
        for side in ("encoder", "decoder")
    },
    embedding=EmbeddingConfig(rows=VOCAB, scale=1.0, logit_scale=0.25),
)


def test_a_published_t5_starts_from_padding_and_its_encoder_reads_an_end(tmp_path):
    own = hub.open_folder(published(tmp_path / "t5", T5, architecture="t5"))
    hub.export(own.model(), tmp_path / "t5", "t5", specials={"eos_token_id": Bytes().eos})
    origin = origins.opened(str(tmp_path / "t5"), None)
    convert.to_run(origin, tmp_path / "run", QUIET)
    for one in (origin, origins.opened(str(tmp_path / "run"), None)):
        read = one.tokenizer()
        assert read.bos == read.pad == Bytes().pad
        assert read.framed([70, 71]).tolist() == [70, 71, Bytes().eos]
    convert.to_hub(origin, tmp_path / "again", None, QUIET)
    assert json.loads((tmp_path / "again/config.json").read_text())["decoder_start_token_id"] == Bytes().pad


def test_a_t5_of_ours_says_what_its_targets_begin_with(tmp_path):
    own = hub.open_folder(published(tmp_path / "t5", T5, architecture="t5"))
    ids = {"pad_token_id": Bytes().pad, "decoder_start_token_id": Bytes().bos}
    hub.export(own.model(), tmp_path / "t5", "t5", specials=ids)
    read = hub.open_folder(tmp_path / "t5").tokenizer.ready(())
    assert (read.pad, read.bos) == (Bytes().pad, Bytes().bos)
    assert read.framed([70, 71]).tolist() == [70, 71]


def renamed(place, **said):
    """A published folder whose specials have names of their own, and what its files say of them."""
    file = place / "tokenizer.json"
    text = file.read_text().replace('"<s>"', '"<|begin|>"').replace('"</s>"', '"<|end|>"')
    file.write_text(text)
    (place / "tokenizer_config.json").write_text(json.dumps(said))
    return origins.opened(str(place), None)


def test_an_end_that_is_no_token_of_the_model_is_told(tmp_path):
    place = published(tmp_path / "published")
    assert renamed(place, bos_token="<|begin|>", eos_token="<|end|>").tokenizer().eos == Bytes().eos
    for said, role in (
        ({"bos_token": "<|begin|>"}, "eos"),
        ({"eos_token": "<|end|>", "add_bos_token": True}, "bos"),
    ):
        with pytest.raises(configs.ConfigError, match=f"which of its tokens is {role}") as raised:
            renamed(place, **said).tokenizer()
        assert len(str(raised.value).splitlines()) == 1
        one = pretrained.tuning(str(place), [], [], None)[0]
        own = one.data.tokenizer.ready(())
        with pytest.raises(configs.ConfigError, match=f"which of its tokens is {role}"):
            one.init_from.check(one.model, own, None)
    assert renamed(place, eos_token="<|end|>").tokenizer().begins is False


def test_whether_lines_begin_with_bos_goes_with_the_model(tmp_path):
    origin = renamed(published(tmp_path / "published"), bos_token="<|begin|>", eos_token="<|end|>")
    convert.to_run(origin, tmp_path / "run", QUIET)
    convert.to_hub(origin, tmp_path / "again", None, QUIET)
    for place in ("published", "run", "again"):
        writer = writing.load(origins.opened(str(tmp_path / place), None))
        given, _ = writer.read(writer.encoded(["ab", ""]), 4)
        first = Bytes().encode("a")[0]
        assert sorted(row[row != Bytes().pad][0] for row in np.asarray(given.ids)) == [Bytes().bos, first]
    (tmp_path / "run/run.json").write_text(
        '{"status": "finished"}'
    )  # trained here, where all lines begin with it
    assert writing.load(origins.opened(str(tmp_path / "run"), None)).begins


def test_a_tokenizer_with_other_specials_is_refused(tmp_path):
    place = published(tmp_path / "published")
    start = pretrained.Parameters(place=str(place))
    for role in ("bos", "eos"):
        other = FromFile(path=str(place), sentinels=28, **{f"{role}_token": "<mask>"}).ready(())
        with pytest.raises(configs.ConfigError, match=f"has the {role} 3, but") as raised:
            start.check(LLAMA, other, None)
        assert len(str(raised.value).splitlines()) == 1


def test_without_a_tokenizer_weights_are_exported_and_another_can_be_bound(tmp_path):
    place = published(tmp_path / "published")
    (place / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    origin = origins.opened(str(place), None)
    assert convert.to_hub(origin, tmp_path / "again", None, QUIET) == "llama"
    assert (tmp_path / "again/model.safetensors").read_bytes() == (place / "model.safetensors").read_bytes()
    assert not (tmp_path / "again/tokenizer.json").exists()
    with pytest.raises(configs.ConfigError, match="no tokenizer there"):
        convert.to_run(origin, tmp_path / "run", QUIET)
    one = pretrained.tuning(str(place), [], [], None)[0]
    with pytest.raises(ValueError, match="no tokenizer in"):
        one.data.tokenizer.ready(())
    bound = ["Data.tokenizer=@FromFile()", f"FromFile.path='{tmp_path / 'tokenizer.json'}'"]
    one = pretrained.tuning(str(place), [], bound, None)[0]
    one.init_from.check(one.model, one.data.tokenizer.ready(()), None)


def test_a_converted_run_is_no_place_to_train_in(tmp_path):
    convert.to_run(origins.opened(str(published(tmp_path / "published")), None), tmp_path / "run", QUIET)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["fingerprint"] == pretrained.Parameters(place=str(tmp_path / "published")).fingerprint(None)
    with pytest.raises(RunError, match="start from them with --init_from=") as raised:
        RunFolder(tmp_path / "run", key="k", fingerprint="f", config="")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("tokenizer", [Bytes(), Bytes(sentinels=3)])
def test_bytes_have_a_file_that_gives_the_same_ids(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(tokenizer))
    source = convert._written(tokenizer, tmp_path, True)
    read = source.ready(())
    everything = bytes(range(256)).decode("latin-1") + "\u20ac <s> <pad>"
    ids = read.encode(everything)
    assert ids.tolist() == tokenizer.encode(everything).tolist()
    assert read.decode(ids) == tokenizer.decode(ids) == everything
    assert read.pieces == tokenizer.pieces
    assert read.vocab_size == tokenizer.vocab_size
    assert [read.sentinel(i) for i in range(read.sentinels)] == list(tokenizer.specials().sentinels)
    assert tokenizer_json(Symbols(size=4)) is None


def broken(place, how):
    """Damage a published folder, and say what the lines of the report have to name."""
    file = place / "model.safetensors"
    arrays = load_file(file)
    if how == "missing":
        lost = [name for name in arrays if "mlp.up" in name]
        save_file({name: array for name, array in arrays.items() if name not in lost}, file)
        return [f"missing {name} [48, 32]" for name in lost]
    if how == "unexpected":
        save_file(arrays | {"model.layers.0.more": np.zeros(3, np.float32)}, file)
        return ["unexpected model.layers.0.more [3]"]
    if how == "misshaped":
        save_file(arrays | {"model.norm.weight": np.ones(31, np.float32)}, file)
        return ["model.norm.weight is [31], expected [32]"]
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-64])
        return ["cannot be read"]
    if how == "pickled":
        file.unlink()
        (place / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
        return ["pytorch_model.bin, which may run code when it is read"]
    (place / "config.json").write_text('{"model_type": "llama", "hidden_size": 32}')
    return ["num_hidden_layers is missing"]


HOW = ("missing", "unexpected", "misshaped", "truncated", "pickled", "config")


@pytest.mark.parametrize("how", HOW)
def test_a_report_has_a_line_for_each_name_and_nothing_is_written(how, tmp_path):
    place = published(tmp_path / "published")
    expected = broken(place, how)
    with pytest.raises((WeightsError, architecture.ConfigError)) as raised:
        convert.to_run(origins.opened(str(place), None), tmp_path / "run", QUIET)
    lines = getattr(raised.value, "lines", (str(raised.value),))
    assert len(lines) == len(expected)
    for line, part in zip(sorted(lines), sorted(expected), strict=True):
        assert part in line
        assert "\n" not in line
    assert not (tmp_path / "run").exists()


def test_the_first_architecture_that_can_say_a_model_is_taken_and_others_say_why_not(tmp_path):
    found = pretrained.Loaded(LLAMA, _params(LLAMA))
    assert convert.inferred(found) == "llama"
    windowed = dataclasses.replace(
        LLAMA, stack=dataclasses.replace(LLAMA.stack, pattern=(BlockSpec(window=Window(8)),))
    )
    assert convert.inferred(pretrained.Loaded(windowed, _params(windowed))) == "mistral"
    sunk = dataclasses.replace(LLAMA, stack=dataclasses.replace(LLAMA.stack, sinks=True))
    with pytest.raises(
        configs.ConfigError, match=r"llama cannot say StackConfig\.sinks = True \(only False\)"
    ) as raised:
        convert.inferred(pretrained.Loaded(sunk, _params(sunk)))
    assert "\n" not in str(raised.value)


def _params(config):
    model = config.build(vocab=VOCAB, key=jax.random.key(0))
    return pretrained.nnx.to_pure_dict(pretrained.nnx.state(model))


def test_a_name_that_is_no_place_is_one_line_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'smollm2'"):
        origins.opened("smolm2", None)


def test_by_the_command_line_a_report_ends_with_a_failure(tmp_path):
    place = published(tmp_path / "published")
    expected = broken(place, "missing")
    code, _, said = command(
        "experiments.convert", f"--source={place}", f"--out={tmp_path / 'run'}", "--from=hf", "--to=run"
    )
    assert code == 1
    assert len(said.splitlines()) == len(expected)
    assert all(line.startswith("error: ") for line in said.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_by_the_command_line_every_damage_is_told(how, tmp_path):
    place = published(tmp_path / "published")
    expected = broken(place, how)
    code, _, said = command("experiments.convert", f"--source={place}", f"--out={tmp_path / 'run'}")
    assert code == 1
    assert len(said.splitlines()) == len(expected)
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("--from=gguf",), "is of the kind hf"),
        (("--architecture=gpt2",), "says nothing to --to=run"),
        (("--to=hf", "--architecture=gpt2"), "gpt2 cannot say"),
        (("--out=docs",), "expected a new or an empty folder"),
        (("--source=nowhere",), "no such folder"),
    ],
)
def test_what_cannot_be_converted_is_one_line(words, wrong, tmp_path):
    place = published(tmp_path / "published")
    code, _, said = command("experiments.convert", f"--source={place}", f"--out={tmp_path / 'out'}", *words)
    assert (code, len(said.splitlines())) == (1, 1)
    assert wrong in said


@pytest.mark.slow
def test_the_command_line_goes_there_and_back(tmp_path):
    place = published(tmp_path / "published")
    for source, out in ((place, "run"), (tmp_path / "run", "again")):
        code, _, wrong = command("experiments.convert", f"--source={source}", f"--out={tmp_path / out}")
        assert code == 0, wrong
    assert (tmp_path / "again/model.safetensors").read_bytes() == (place / "model.safetensors").read_bytes()
    code, said, wrong = command(
        "experiments.generate", f"--run_dir={tmp_path / 'run'}", "--prompt=one two", "--tokens=4"
    )
    assert code == 0, wrong
    assert said.startswith("one two")
