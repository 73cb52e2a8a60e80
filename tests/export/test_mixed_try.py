import sys; sys.path[:0]=["/work/main/tests","/work/main/tests/export"]
from test_mixed_search import *
def test_try(planted, own_labels, written_bundle, tmp_path):
    for b in (planted, written_bundle):
        f=Path(shutil.copytree(b, tmp_path/b.parent.name/"x"))
        d=search(f, own_labels, "--ap-budget", 0.1)
        print(d.stdout, d.stderr, d.returncode)
        doc=json.loads((f/VERIFY_NAME).read_text())["search"]
        for g in doc["groups"]: print(g["name"],g["macs_share"],g["error"],g["precision"])
        print(doc["trials"], doc["latency_ms"], doc["reported_on"])
    assert 0
