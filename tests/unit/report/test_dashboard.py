"""`neuroimagen dashboard RUNS` by wandb's own library: what it would send, what a server on this machine is sent."""

import gzip
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from neuroimagen.report.dashboard import DashboardConfig, dashboard, find_runs, make_report

pytest.importorskip("wandb_workspaces")
STATS = [{"step": 20, "loss": 1.0, "lr": 0.1, "memory_gb": 0.5}, {"step": 40, "loss": 0.5, "val/knn": 0.5}]


def make_runs(folder):
    """Two seeds of stage 1a with two margins each, one run of stage 2, and a scored run of stage 3."""
    runs = {f"seed{s}/margin{m}": ("pixel_features", {"seed": s, "margin": m}) for s in (0, 1) for m in (0.2, 0.5)}
    runs |= {"seed0/semantics": ("sample_semantics", {"seed": 0}), "seed0/reconstruct": ("reconstruct", {"seed": 0})}
    for name, (stage, fields) in runs.items():
        run = folder / name
        for part in ("images", "tables"):
            (run / part).mkdir(parents=True)
        trained = {} if stage == "reconstruct" else {"project": "brains", "encoder": "conv"}
        fields |= trained | {"run_dir": str(run), "shards": f"{name}/shards"}
        (run / "config.yaml").write_text(yaml.safe_dump(fields))
        (run / "environment.json").write_text(json.dumps({"command": [f"trainers/{stage}.py", "x=y"]}))
        (run / "DONE").touch()
        if stage == "reconstruct":
            (run / "scores.json").write_text("{}")
            (run / "scores.csv").write_text("row\n")
            (run / "tables" / "table3.md").write_text("| row | ACC |\n|---|---|\n| L+I | 1.0 |\n")
            (run / "images" / "L+I").mkdir()
            continue
        (run / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in STATS) + '{"step": 6')  # killed
        (run / "model").mkdir()
        (run / "model" / "model.safetensors").write_bytes(name.encode())
        for step in (20, 40):
            (run / "images" / f"maps-{step:08d}.png").touch()
            (run / "tables" / f"val_knn-{step:08d}.csv").touch()
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("made") / "study")


def command(*arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and "proxy" not in k.lower()}
    line = [sys.executable, "-m", "neuroimagen.cli", "dashboard", *map(str, arguments)]
    return subprocess.run(line, env=environment | variables, capture_output=True, text=True, timeout=900)


def grids(spec):
    """(stage, head) -> (titles of the panels, run set)."""
    found, stage, head = {}, "", ""
    for block in spec["blocks"]:
        text = block["children"][0]["text"] if block["type"] == "heading" else ""
        if block["type"] == "heading" and block["level"] == 1:
            stage = text
        head = text or head
        if block["type"] == "panel-grid":
            panels = block["metadata"]["panelBankSectionConfig"]["panels"]
            found[stage, head] = ([p["config"].get("chartTitle") for p in panels], block["metadata"]["runSets"][0])
    return found


def test_a_chapter_a_stage_of_what_was_logged(study):
    report = make_report(find_runs(study), "study", "brains", "me")
    found = grids(report._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True))
    heads = ["Losses", "Validation", "Pictures", "By class", "Speed and memory"]
    stages = ["pixel_features", "sample_semantics"]
    assert list(found) == [(stages[0], h) for h in [*heads, "Over seeds"]] + [(stages[1], h) for h in heads]
    titles = {head: panels for (stage, head), (panels, _) in found.items() if stage == "pixel_features"}
    assert (titles["Losses"], titles["Validation"], titles["Pictures"]) == (["loss", "lr"], ["val/knn"], ["maps"])
    assert titles["Speed and memory"] == ["memory_gb"] and titles["Over seeds"] == ["val/knn"]
    _, runs = found["pixel_features", "Over seeds"]
    asked = {f["key"]["name"]: (f["op"], f["value"]) for f in runs["filters"]["filters"]}
    assert asked == {"jobType": ("=", "pixel_features"), "group": ("IN", ["seed0", "seed1"])}
    assert runs["grouping"] == [{"section": "config", "name": "margin.value"}], "one curve a margin, over its seeds"
    assert found["sample_semantics", "Losses"][1]["grouping"] == []
    assert report.blocks[-1].text.startswith("| row | ACC |")


def test_offline_it_is_a_file_and_artifacts_wait_for_sync(tmp_path, monkeypatch):
    for name in ("HOME", "WANDB_DATA_DIR"):  # wandb wants a home
        monkeypatch.setenv(name, str(tmp_path))
    study = make_runs(tmp_path / "study")
    done = command(study, "artifacts=true", WANDB_MODE="offline", WANDB_SILENT="true")
    assert done.returncode == 0, done.stderr
    assert "not saved, as wandb is offline" in done.stdout and "artifact seed1-margin0.5-model" in done.stdout
    written = json.loads((study / "dashboard.json").read_text())
    assert (written["project"], written["url"]) == ("brains", "") and len(grids(written["report"]["spec"])) == 11
    for name, kind in (("seed1/margin0.2", "model"), ("seed0/reconstruct", "scores")):
        (folder,) = (study / name / "wandb").glob("offline-run-*")
        leet = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
        lines = subprocess.run(leet, capture_output=True, text=True, check=True, timeout=900).stdout.splitlines()
        records = {record["type"]: record for record in map(json.loads, lines)}
        run, artifact = records["run"]["run"], records["artifact"]["artifact"]
        assert run["run_id"] == (study / name / "tracker_id").read_text()
        assert (run["project"], run["run_group"], artifact["type"]) == ("brains", name.partition("/")[0], kind)
        files = {"model": ["model.safetensors"], "scores": ["scores.csv", "scores.json"]}[kind]
        assert sorted(content["path"] for content in artifact["manifest"]["contents"]) == files


class Server(BaseHTTPRequestHandler):
    """Answers as wandb's does, as far as its client asks to save a report."""

    asked: list[dict] = []

    def log_message(self, *what):
        pass

    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        sent = gzip.decompress(sent) if self.headers.get("Content-Encoding") == "gzip" else sent
        query = json.loads(sent) if self.path == "/graphql" else {"query": ""}
        data: dict = {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}"}}
        data["viewer"]["teams"] = {"edges": []}
        if "upsertView" in query["query"]:
            told = query["variables"]
            self.asked.append(told)
            view = {"id": "Vmlldzox", "type": "runs", "name": told["name"], "displayName": told["displayName"]}
            view |= {"description": "", "spec": told["spec"]}
            view["project"] = {"id": "p", "name": told["projectName"], "entityName": told["entityName"]}
            data = {"upsertView": {"view": view, "inserted": True}}
        elif "models" in query["query"]:
            node = {"id": "p", "name": "brains", "entityName": "me", "createdAt": "", "isBenchmark": False}
            page = {"endCursor": "", "hasNextPage": False}
            data = {"models": {"edges": [{"node": node | {"user": None}, "cursor": ""}], "pageInfo": page}}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def test_online_it_is_saved_once_and_then_renewed(tmp_path):
    study = make_runs(tmp_path / "study")
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "a" * 40}
        done = [command(study, WANDB_CONFIG_DIR=str(tmp_path), **here) for _ in range(2)]
        server.shutdown()
    assert [each.returncode for each in done] == [0, 0], done[0].stderr + done[1].stderr
    first, second = Server.asked
    assert (first["entityName"], first["projectName"], first["displayName"]) == ("me", "brains", "study")
    assert (first.get("id"), second["id"]) == (None, "Vmlldzox"), "not a second report"
    written = json.loads((study / "dashboard.json").read_text())
    assert grids(json.loads(second["spec"])).keys() == grids(written["report"]["spec"]).keys()
    assert written["url"] == done[1].stdout.split()[-1] == f"{here['WANDB_BASE_URL']}/me/brains/reports/study--Vmlldzox"


def test_without_a_server_or_runs_it_is_one_sentence(study, tmp_path):
    done = command(study, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="a" * 40)
    assert (
        done.returncode == 2 and "WANDB_MODE=offline needs neither" in done.stderr and "\n" not in done.stderr.strip()
    )
    with pytest.raises(ValueError, match="holds no run directories: name the folder"):
        dashboard(DashboardConfig(runs=str(tmp_path)))
    runs = make_runs(tmp_path / "runs")
    config = (runs / "seed1/margin0.2/config.yaml").read_text()
    (runs / "seed1/margin0.2/config.yaml").write_text(config.replace("brains", "other"))
    with pytest.raises(ValueError, match=r"name 2 projects \(brains, other\): give project="):
        dashboard(DashboardConfig(runs=str(runs)))
    (runs / "seed1/margin0.2/environment.json").write_text("{")
    with pytest.raises(ValueError, match="margin0.2 is damaged, or no run of a trainer"):
        dashboard(DashboardConfig(runs=str(runs)))
