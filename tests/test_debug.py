"""debug=default|overfit|profile|attach: what a person at a keyboard does with them."""

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from torch.autograd import DeviceType

from hydra_trainer.profiling import most_expensive

from .conftest import SHORT, Job

Hit = Callable[..., dict[str, str]]


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """Make jobs that leave all settings of the trainer to `debug=...`."""

    def make(*words: str) -> Job:
        short = [word for word in SHORT if not word.startswith(("trainer.", "checkpoint."))]
        return Job(tmp_path / "run", [*short, *words])

    return make


def test_a_breakpoint_in_the_model_works(job: Callable[..., Job], hit: Hit) -> None:
    drill = job("debug=default")
    drill.anew = True  # in a fork of pytest's it would be pytest's breakpoint()
    with drill.start(**hit("breakpoint", "train", 0)) as process:
        printed, _ = process.communicate("up\np 'loss is', float(loss.detach())\nc\n", timeout=100)
    assert process.returncode == 0, printed
    assert re.search(r"\('loss is', 2\.\d+\)", printed), printed
    result = drill.result()
    assert (result["steps"], result["world_size"]) == (1, 1)
    assert not (drill.directory / "checkpoints").exists()


def test_debug_trains_one_batch_of_each_loop_every_time(job: Callable[..., Job]) -> None:
    """And without loader workers, whatever the recipe says."""
    drill = job("experiment=cifar10_resnet18", "data=digits", "debug=default")
    for _ in range(2):  # never "finished already": a debugger is there to see it again
        code, printed = drill.run()
        assert code == 0, printed
        assert "test accuracy" in printed
    config = yaml.safe_load((drill.directory / "config.yaml").read_text())
    assert config["data"]["num_workers"] == 0
    assert config["trainer"]["max_epochs"] == 1


def test_an_anomaly_names_the_operation(job: Callable[..., Job]) -> None:
    drill = job("model._target_=tests.drill.Broken", "debug=default")
    code, printed = drill.run()
    assert code == 1
    assert "Backward0' returned nan values" in printed


def test_overfit(job: Callable[..., Job]) -> None:
    drill = job("debug=overfit", "model.hidden=64", "model.dropout=0", "optim.lr=0.01")
    code, printed = drill.run()
    assert code == 0, printed
    losses = [float(text) for text in re.findall(r"train/loss (\S+)", printed)]
    assert losses[-1] < 0.05 < 1 < losses[0]


def test_profile(job: Callable[..., Job]) -> None:
    drill = job("debug=profile")
    code, printed = drill.run()
    assert code == 0, printed
    table = printed[printed.index("operation\n") : printed.index("trace: ")].splitlines()[1:]
    assert len(table) == 10
    assert all(re.fullmatch(r" *[\d.]+ ms +[\d.]+% +\d+  \S.*", line) for line in table), table
    assert "ProfilerStep" not in printed
    trace = json.loads((drill.directory / "trace-0.json").read_text())
    steps = [event for event in trace["traceEvents"] if "ProfilerStep" in event.get("name", "")]
    assert len({event["name"] for event in steps}) == 10
    assert "https://ui.perfetto.dev" in printed


def test_the_ten_most_expensive_operations() -> None:
    """Those of the GPU where there is one; with their names in full, however long."""

    def event(key: str, cpu: float, gpu: float, **other: Any) -> Any:
        facts = {"count": 3, "is_user_annotation": False, "device_type": DeviceType.CPU}
        times = {"self_cpu_time_total": cpu, "self_device_time_total": gpu}
        return SimpleNamespace(key=key, **facts | times | other)

    backward = "autograd::engine::evaluate_function: AddmmBackward0"
    averages = [event(f"aten::op{i}", cpu=i, gpu=100 - i) for i in range(20)]
    averages += [
        event(backward, cpu=9e6, gpu=0),
        event("ProfilerStep*", cpu=1e9, gpu=1e9, is_user_annotation=True),
        event("void kernel<4>(int)", cpu=0, gpu=1e9, device_type=DeviceType.CUDA),
    ]
    cpu, gpu = (most_expensive(averages, on).splitlines()[1:] for on in (False, True))
    assert cpu[0] == f"  9000.000 ms  100.0%        3  {backward}"
    assert [line.split()[-1] for line in cpu[1:]] == [f"aten::op{19 - i}" for i in range(9)]
    assert [line.split()[-1] for line in gpu] == [f"aten::op{i}" for i in range(10)]
    assert most_expensive([event("aten::op", cpu=1, gpu=0)], True).endswith(
        "0.0%        3  aten::op"
    )


class Client:
    """As much of a debugger's client (the Debug Adapter Protocol) as it takes to attach."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._file = self._socket.makefile("rb")
        self._sent = 0

    def request(self, command: str, **arguments: Any) -> None:
        self._sent += 1
        message = {"seq": self._sent, "type": "request", "command": command}
        body = json.dumps(message | {"arguments": arguments}).encode()
        self._socket.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    def wait_for(self, name: str) -> None:
        """Read messages until an event or an answer of that name."""
        while True:
            length = int(self._file.readline().split(b":")[1])
            self._file.readline()
            message = json.loads(self._file.read(length))
            if name in (message.get("event"), message.get("command")):
                return


def test_attach(job: Callable[..., Job]) -> None:
    pytest.importorskip("debugpy")
    drill = job("debug=attach", "debug.port=0", "trainer.max_epochs=1")
    with drill.start() as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"waiting for a debugpy client on 127\.0\.0\.1:(\d+)", line):
                break
        else:
            pytest.fail("it never said where it waits")
        client = Client(int(found[1]))
        client.request("initialize", adapterID="test")
        client.wait_for("initialize")
        client.request("attach", justMyCode=True)
        client.wait_for("initialized")
        client.request("configurationDone")
        client.request("disconnect", terminateDebuggee=False)
        printed = process.stdout.read()
    assert process.returncode == 0, printed
    assert "test accuracy" in printed


def test_attach_to_a_port_that_is_taken(job: Callable[..., Job], tmp_path: Path) -> None:
    pytest.importorskip("debugpy")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, printed = job("debug=attach", f"debug.port={port}").run()
    assert code == 2, printed
    assert f"debug.port is {port}, but debugpy cannot listen there" in printed
    assert "Type debug.port=0" in printed
