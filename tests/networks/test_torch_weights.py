"""Weights of PyTorch: files that it wrote, read without it; names and layouts of layers; runs that start from them.

What agrees with PyTorch's own modules is in test_torch_peer.py.
"""

import base64
import os
import pickle
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import drawn

from subspaces_jax import state_dicts
from subspaces_jax.errors import CheckpointError, ConfigError
from subspaces_jax.experiments import export, runs, train
from subspaces_jax.experiments.build.programs import Programs
from subspaces_jax.networks import MLP, AlexNet, ImageNetResNet, ImageNetVGG, torch_names

# Written by torch.save of PyTorch 2.13, compressed: {"epoch": 3, "model": STATE} in today's form, STATE in that of
# before 1.6. "a.weight" is a transposed view of the numbers 0 to 11, and "a.bias" the last three of them.
ARCHIVE = (
    "c-p0v-*3}a6vuCVG)X;3TPSpN(6Nml=>}=+v`)gHE!JdB@}!j@q=*;Gac*M^$IfwXT9|}X36-s{(;j$2`~`d6!(RF?@W7t-fW!mZ)Ak?0y>>D7"
    "?b--x<-~DxzTf+~SLYnBX_+iSg#y}lO`;RX@J-9!zzZFN80G#wM^%dGZsOWXKLk{2jZp#ad!_{`EfYNTybg9CZJM6rV3XLMI}m>KJJ`pa?`)F@"
    "keP2nw$x%P8|6)GcP#>ACh_Q!Wqn9&XCUZ4ZVzpzqxTKp=wX6=0dfbV5bO>-U*C`f$d^j3JhdIrOrwjT5K08q@eFc1{8NDOR*L3SKxk#?-RuwH"
    "6YUs*W4AP<Wwp#>IIg9%>|-eISPXT7z+@AqehD5<{0t|XFx|=p@NL@|z$uF^YZa_<ORxf?)3>y7Ewc?XT520U4NcAvm~Fymts>R6%l^=HZMUoU"
    "u;IelP``)zz2U4!q~`)s5$33In!x9bFue`unei8)@s|X?YQlxqsleDB_Vl(vObZWm;v42Y+<}V;{~tWJ8~I-f{3W<d{Zj-=)PH_H^qnX0brZe`"
    "5=^*~@KA#D6y?b0YLHfia>%)`$5~;VV(2Fks5W77I4rMe`NB@=)tg2dAr@-~7UB$2qCzaMdw$O#`Uds~w4_vJnXAVSy+p?G$G?9+V(2Um=9opb"
    "_Z)k*r5ldjb$i$)s#5(J6nT*WtZc$R^bAn?P=G145&^Uy5bUvbQk8Fyas-Y|h=Uo!_KjC(SUu+sWhkQM#8g<QsLHh?0EDhvEA(rXerRmbct&HF"
    "#!DLLCY?nz&eN#eWTf{Wt}j<u?~WjyPLhhMGP#eGZfBQy$}e90MvYK*gy(9~Q&N@dN2<X5o-<?U|Ml8qixx&OTu(AoRi*yX3}|IF*njpv7mwcm"
    "M63d%7Cch@RRy;C^QYZAqw9YTN$(pl*!lqbHtoQl4EBD}?T)IHKM+Q&)M|BEs!5GnqfuX46lG~i6zg(LUaHrmN<)-uRaumRG4cDk`euo8lmf~W"
    "gN-=jqik{?IsYEz)$su|lThxY(LuwHH;E6C+2r8JphG4X?-L&cQwg76V?NOU;^pz~EGFcqvxu7=yf)s2N$oDL6?tvEdy?AeF-|M-+IaORwNH3$"
    "mDk2=cOtoN4)NW>i{m9Vmptp3`2UN2P0Qu3ylaij)krCD_ebgQUeCW9HM!u|pX1?k_|_ZCg&HBq4|CrFyZuD9"
)
LEGACY = (
    "c-nQ6%Wl&^6o!3E)0(t|OM!9?_k@dau1z+yMW{j=ZZ(_PAj@%v*x=YX_P7Y7O4+0oo`D5R9wU#!mPbHh!EtN_B88F9*fT!!f9Ic>k@Q9Net+Hl"
    "ReJmV<%Twrp8b@uKLDXji-I5w!+-~N;F<d@jNHHn5fkVt{_$MSJ!Ue$=UP5UM^wd0{$a?>$o<G7kPkp9(;QAlP7rd)5sAt;a(xa<M4?Ke5%_(`"
    "6D5w3X(PsCHb+XNz6g6PWWC3(%~cR828d<4j4LedJ#+gG2g&9^Xgiu2bJvShGi2S^^?K&e3atU-EL1`MPYP##6olq}O~ne!G@q1+nO2`cE?uJT"
    "dV$4XrIRWw(KXEJH1tlrQElk0PQ9f=e(J^^#;{BZ&pE8@5rHT~J_MDBL^*_GpPi)e0*6%t){drw<DZ~tzzMoEwbFI12u?a!gp+d?LQXlU_~|{e"
    "LgX>56LAb@QsJ{4&Ka;VUDnmY*!Nw(Zw?rq#`#n;GxNmq-pssQ_=~C6HtU<srrv;yh>;L;De)kU;c|kxl4436t{QNSu1_(3JTSW!w;dLlJhbe0"
    "tOwWUXixD>XS5r0v`(YeuD0MN(nO@)LRzJgQf_l78&IKQvZruoPVv$7G^(wc>fQORYPXxUHr&fR+|N8{iH8TNy3V0$KrOjtuald-U<<@Wl}d}w"
    "L|#N!m?jBXdnioA>@%Oe3&Ou`w1wR^J{Tj6Zx|Dd9~i=pAQUl582Zjkb8CC@2PuW`b^"
)
STATE = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "a.bias": np.float32([9, 10, 11]),
    "b.running_mean": np.float16([1.5, -2.0]),
    "b.num_batches_tracked": np.int64(7),
    "c": np.array([0.5, -3.0], jnp.bfloat16),
}


def written(path, text):
    path.write_bytes(zlib.decompress(base64.b85decode(text)))
    return path


@pytest.mark.parametrize("name, text", [("today.tar", ARCHIVE), ("legacy.pth", LEGACY)])
def test_files_of_pytorch_are_read_without_it(name, text, tmp_path):
    found = state_dicts.load(written(tmp_path / name, text))
    assert list(found) == list(STATE)
    for key, expected in STATE.items():
        assert found[key].dtype == expected.dtype
        np.testing.assert_array_equal(found[key], expected)


class Evil:
    def __reduce__(self):
        return os.system, ("touch never",)


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda: pickle.dumps(Evil()), "asks for .*system, and may hold tensors alone"),
        (lambda: pickle.dumps({"a": 1}), "no file of PyTorch"),
        (lambda: zlib.decompress(base64.b85decode(LEGACY))[:-30], "damaged, get it anew"),
        (lambda: zlib.decompress(base64.b85decode(ARCHIVE))[:900], "damaged, get it anew"),
        (lambda: b"", "damaged, get it anew"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").write_bytes(content())
    with pytest.raises(CheckpointError, match=f"x.pth cannot be read .*{message}"):
        state_dicts.load(tmp_path / "x.pth")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("name", ["state_dict", "model", "net", "ema"])
def test_the_weights_of_a_snapshot_are_found_whatever_they_are_called(name):
    state = jax.tree.map(np.asarray, STATE)
    found = state_dicts._state_dict({"epoch": 3, name: state, "optimizer": {"state": {}, "groups": [1]}})
    assert found.keys() == STATE.keys()
    with pytest.raises(state_dicts._Refused, match="'epoch' is no tensor"):
        state_dicts._state_dict({"epoch": 3, "a": state, "b": state})


def test_a_file_of_another_ending_is_taken_for_no_run(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"?")
    with pytest.raises(
        ConfigError, match=r"x.ckpt is a file, and weights are read from files that end in .safetensors"
    ):
        train.run({"dataset": "digits", "network": "mlp_8", "initial": str(tmp_path / "x.ckpt")}, tmp_path / "run")


def test_a_tensor_outside_its_storage_is_refused():
    storage = state_dicts._Storage(np.float32, "0", 4)
    inside = state_dicts._Tensor(storage, 1, (3,), (1,)).read(np.arange(4, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(inside, [1, 2, 3])
    for offset, shape, strides in ((2, (3,), (1,)), (0, (2, 2), (2, 2)), (0, (10**9,), (0,)), (-1, (1,), (1,))):
        with pytest.raises(ValueError, match="outside its storage"):
            state_dicts._Tensor(storage, offset, shape, strides).read(bytes(16))


def test_missing_files_and_other_endings(tmp_path):
    with pytest.raises(CheckpointError, match="no file of weights .*x.pth"):
        state_dicts.load(tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="written as .safetensors"):
        state_dicts.save(tmp_path / "x.pth", {})


def test_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.float32([1])}
    state_dicts.save(tmp_path / "x.safetensors", state)
    found = state_dicts.load(tmp_path / "x.safetensors")
    assert found.keys() == state.keys()
    for key in state:
        np.testing.assert_array_equal(found[key], state[key])
    (tmp_path / "y.safetensors").write_bytes(b"0123456789")
    with pytest.raises(CheckpointError, match="y.safetensors cannot be read"):
        state_dicts.load(tmp_path / "y.safetensors")


NETWORKS = {
    "alexnet": (AlexNet(5, 2, 6), (20, 20, 3)),
    "vgg_bn": (ImageNetVGG(5, 13, True, width=2, hidden=6), (8, 8, 1)),
    "resnet": (ImageNetResNet(5, (1, 2, 1, 1), width=2, classifier_bias=True), (16, 16, 3)),
    "bottleneck": (ImageNetResNet(5, (1, 2, 1, 1), True, width=2, classifier_bias=True), (16, 16, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name):
    network, image = NETWORKS[name]
    variables = drawn(network, image)
    state = torch_names.to_torch(network, variables)
    wrapped = {key.replace("features.", "features.module."): value for key, value in state.items()}
    wrapped = {f"module._orig_mod.{key}": value for key, value in wrapped.items()}  # AveragedModel, torch.compile
    counted = wrapped | {"bn1.num_batches_tracked": np.int64(3), "n_averaged": np.int64(2)}
    back = torch_names.from_torch(network, counted)
    assert jax.tree.structure(back) == jax.tree.structure(dict(variables))
    for ours, found in zip(jax.tree.leaves(variables), jax.tree.leaves(back)):
        np.testing.assert_array_equal(found, ours)


def test_layouts_by_hand():
    network, _ = NETWORKS["alexnet"]
    state = torch_names.to_torch(network, drawn(network, (20, 20, 3)))
    params = torch_names.from_torch(network, state)["params"]
    assert params["Conv_1"]["kernel"][3, 1, 0, 5] == state["features.3.weight"][5, 0, 3, 1]
    # a map of 6x6 pixels and 8 channels: pixel (2, 4) of channel 7 is column 7 * 36 + 16 there and row 16 * 8 + 7 here
    assert params["Dense_0"]["kernel"][16 * 8 + 7, 3] == state["classifier.1.weight"][3, 7 * 36 + 16]
    assert params["Dense_2"]["kernel"][5, 1] == state["classifier.6.weight"][1, 5]


def test_names_are_torchvisions():
    vgg = torch_names.layer_names(ImageNetVGG(10, 16))
    assert [vgg[f"Conv_{i}"] for i in (0, 2, 4, 7, 12)] == [f"features.{i}" for i in (0, 5, 10, 17, 28)]
    normed = torch_names.layer_names(ImageNetVGG(10, 16, True))
    assert (normed["Conv_12"], normed["BatchNorm_12"]) == ("features.40", "features.41")
    resnet = torch_names.layer_names(ImageNetResNet(10, (2, 2, 2, 2), classifier_bias=True))
    assert resnet["BasicBlock_2/Conv_2"] == "layer2.0.downsample.0" and "BasicBlock_0/Conv_2" not in resnet
    assert (resnet["BasicBlock_7/BatchNorm_1"], resnet["Conv_1"]) == ("layer4.1.bn2", "fc")


def test_weights_of_another_network_are_refused():
    network, image = NETWORKS["resnet"]
    state = torch_names.to_torch(network, drawn(network, image))
    without = ImageNetResNet(5, (1, 2, 1, 1), width=2)
    with pytest.raises(ValueError, match=r"another network \(\+ fc.bias\).*classifier_bias=True"):
        torch_names.from_torch(without, state)
    with pytest.raises(ValueError, match="other sizes .*Conv_1/kernel"):
        torch_names.from_torch(network.clone(num_classes=7), state)
    with pytest.raises(ValueError, match=r"another network \(- bn1.bias, .* and \d+ more\)"):
        torch_names.from_torch(network, {"a": np.zeros(3)})
    for wrong, message in (
        (np.float32(1), "a layer1.0.conv1.weight that is a single number"),
        (state["layer1.0.conv1.weight"] + 1j, "layer1.0.conv1.weight of complex64: weights are real"),
        (state["layer1.0.conv1.weight"].astype(np.int8), "layer1.0.conv1.weight of int8: weights are real"),
    ):
        with pytest.raises(ValueError, match=message):
            torch_names.from_torch(network, state | {"layer1.0.conv1.weight": wrong})
    with pytest.raises(ValueError, match="not of MLP"):
        torch_names.layer_names(MLP(10))


def test_a_run_that_starts_from_weights_and_trains_nothing_reads_no_data(tmp_path, monkeypatch):
    network, image = AlexNet(10, 2, 6), (20, 20, 3)
    variables = drawn(network, image)
    state = torch_names.to_torch(network, variables)
    monkeypatch.setattr(state_dicts, "load", lambda path: state)
    config = {"network": "alexnet(width=2, hidden=6)", "dataset": "cifar10", "data_dir": str(tmp_path / "none")}
    config |= {"subspace": "none", "beta": 0.0, "num_epochs": 0, "num_devices": 1, "batch_size": 10}
    config["initial"] = "somewhere/alexnet.safetensors"
    assert train.run(config, tmp_path / "run")["step"] == 0
    assert train.run(config, tmp_path / "run")["step"] == 0  # a second call finds it done
    run = runs.open_run(tmp_path / "run")
    assert run.steps == [0] == list(run.plan.kept_steps)
    found = runs.networks(run, "snapshots")
    for ours, kept in zip(jax.tree.leaves(variables["params"]), jax.tree.leaves(found.stack)):
        np.testing.assert_array_equal(kept[0], ours)
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr(state_dicts, "save", lambda path, state: written.update({path.name: state}))
    written = {}
    export.run(tmp_path / "run", tmp_path / "back.safetensors")
    assert written["back.safetensors"].keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(written["back.safetensors"][name], array)
    with pytest.raises(ConfigError, match="to .safetensors those of alexnet"):
        export.run(tmp_path / "run", tmp_path / "back.npz")
    with pytest.raises(ConfigError, match="has no steps"):
        train.run(config | {"initial": "a.pth@3"}, tmp_path / "other")
    monkeypatch.setattr(Programs, "initial_state", lambda made: pytest.fail("computed what is not to be used"))
    with pytest.raises(CheckpointError, match="config.initial: a.pth cannot be taken: weights of another network"):
        train.run(config | {"initial": "a.pth", "network": "imagenet_vgg_11"}, tmp_path / "other")
