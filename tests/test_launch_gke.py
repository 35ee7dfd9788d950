"""GKE: the JobSet, against its schema, and what kubectl is told."""

import shlex

import pytest
import yaml
from kubeflow_trainer_api import models
from launching import GPUS, ROOT, RUN, TPUS, printed


def jobset(tools, *args):
  """The JobSet that gke.sh would make, after a check against its schema."""
  dry = tools.run("gke.sh", "run", *args, "--dry-run")
  assert dry.returncode == 0, dry.stderr
  first, rest = dry.stdout.split("\n", 1)
  assert shlex.split(first)[-3:] == ["create", "--filename=-", "<<END"]
  document = yaml.safe_load(rest.removesuffix("END\n"))
  known = models.JobsetV1alpha2JobSet.from_dict(document)
  # The models drop what they do not know: nothing may be missing afterwards.
  assert known.to_dict() == document
  return document


def pods(document):
  [job] = document["spec"]["replicatedJobs"]
  return job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


def test_gke_schema_finds_what_is_misspelt(tools):
  document = jobset(tools, *TPUS)
  pods(document)[0]["backOffLimit"] = 0
  known = models.JobsetV1alpha2JobSet.from_dict(document)
  assert known.to_dict() != document
  pods(document)[0]["parallelism"] = "four"
  with pytest.raises(ValueError, match="valid integer"):
    models.JobsetV1alpha2JobSet.from_dict(document)


def test_gke_tpu_jobset(tools):
  strange = "--config.note=a 'b' \"c\" \\ & $(HOME) $x {{name}}"
  document = jobset(tools, *TPUS, strange, "--restarts=7")
  job, pod = pods(document)
  [main] = pod["containers"]
  assert document["spec"]["failurePolicy"]["maxRestarts"] == 7
  assert (job["parallelism"], job["completions"]) == (4, 4)
  assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
  assert pod["restartPolicy"] == "Never"  # which podFailurePolicy needs
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x4",
  }
  assert main["resources"]["limits"] == {"google.com/tpu": 4}
  escaped = strange.replace("$(", "$$(")  # for Kubernetes
  expected = ["-m", "main", *RUN, escaped, "--distributed"]
  assert main["command"] + main["args"] == ["python", *expected]
  assert main["env"] == []
  [placement] = document["metadata"]["annotations"].items()
  assert placement == (
    "alpha.jobset.sigs.k8s.io/exclusive-topology",
    "cloud.google.com/gke-nodepool",
  )
  annotations = job["template"]["metadata"]["annotations"]
  assert annotations == {"gke-gcsfuse/volumes": "true"}
  [volume] = pod["volumes"]
  assert volume["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"
  assert main["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]


def test_gke_gpu_jobset_tells_processes_where_they_are(tools):
  document = jobset(tools, *GPUS)
  job, pod = pods(document)
  [main] = pod["containers"]
  env = {entry["name"]: entry for entry in main["env"]}
  [name] = [job["name"] for job in document["spec"]["replicatedJobs"]]
  assert env["JAX_COORDINATOR_ADDRESS"]["value"] == f"vit-{name}-0-0.vit:8476"
  assert env["JAX_NUM_PROCESSES"]["value"] == str(job["completions"]) == "2"
  index = env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
  assert "batch.kubernetes.io/job-completion-index" in index
  assert main["args"][-1] == "--distributed"
  assert main["resources"]["limits"] == {"nvidia.com/gpu": 8}
  claim = {"name": "shared", "persistentVolumeClaim": {"claimName": "disk"}}
  assert pod["volumes"] == [claim]


@pytest.mark.parametrize(
  "args", [(*TPUS, "--topology=2x2"), (*GPUS, "--hosts=1")]
)
def test_gke_one_host_looks_for_no_other(args, tools):
  job, pod = pods(jobset(tools, *args))
  [main] = pod["containers"]
  assert job["completions"] == 1
  assert "--distributed" not in main["args"]
  assert main["env"] == []


def test_gke_mistakes_are_not_tried_again(tools):
  document = jobset(tools, *TPUS)
  [rule] = document["spec"]["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  job, pod = pods(document)
  [rule] = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"] == {
    "containerName": pod["containers"][0]["name"],
    "operator": "In",
    "values": [2],
  }


def test_gke_does_what_the_dry_run_prints(tools):
  document = jobset(tools, *TPUS, "--namespace=mine")
  others = [["status"], ["log"], ["delete"]]
  dry = [
    printed(tools.run("gke.sh", *c, "--name=vit", "--dry-run").stdout)
    for c in others
  ]
  tools.add("kubectl")
  tools.answer("kubectl", '[ "$1" != --namespace=mine ] || cat >"$here/fed"')
  result = tools.run("gke.sh", "run", *TPUS, "--namespace=mine")
  assert result.returncode == 0, result.stderr
  assert yaml.safe_load((tools.folder / "fed").read_text()) == document
  create = ["kubectl", "--namespace=mine", "create", "--filename=-"]
  assert tools.calls() == [create]
  for command, expected in zip(others, dry, strict=True):
    (tools.folder / "calls").unlink()
    assert tools.run("gke.sh", *command, "--name=vit").returncode == 0
    assert tools.calls() == expected != []


def test_gke_image_is_made_of_what_there_is():
  lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
  copied = [w for x in lines if x.startswith("COPY") for w in x.split()[1:-1]]
  assert {"setup.py", "main.py", "configs", "vit_ssl_jax"} <= set(copied)
  assert all((ROOT / name).exists() for name in copied)
