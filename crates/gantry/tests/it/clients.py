"""The official Python client against a running instance: every verb, watch, exec, logs."""

import threading

from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import stream

config.load_kube_config()
core, apps = client.CoreV1Api(), client.AppsV1Api()

assert client.VersionApi().get_code().git_version.startswith("v1.36")

# A watch sees what happens after the list it starts from.
listed = core.list_namespaced_config_map("default")
seen = []


def follow():
    start = listed.metadata.resource_version
    for event in watch.Watch().stream(
        core.list_namespaced_config_map, "default", resource_version=start, timeout_seconds=90
    ):
        if event["object"].metadata.name == "py":
            seen.append((event["type"], dict(event["object"].data or {})))
        if event["type"] == "DELETED":
            return


watcher = threading.Thread(target=follow)
watcher.start()
body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="py"), data={"a": "1"})
made = core.create_namespaced_config_map("default", body)
assert made.metadata.uid and made.metadata.creation_timestamp
try:
    core.create_namespaced_config_map("default", body)
    raise AssertionError("created twice")
except ApiException as error:
    assert error.status == 409 and "already exists" in error.body, error
patched = core.patch_namespaced_config_map("py", "default", {"data": {"b": "2"}})
assert patched.data == {"a": "1", "b": "2"}, patched.data
patched.data["a"] = "3"
core.replace_namespaced_config_map("py", "default", patched)
try:
    core.replace_namespaced_config_map("py", "default", patched)
    raise AssertionError("a stale replace was taken")
except ApiException as error:
    assert error.status == 409 and "the object has been modified" in error.body, error
core.delete_namespaced_config_map("py", "default")
watcher.join(100)
assert seen == [
    ("ADDED", {"a": "1"}),
    ("MODIFIED", {"a": "1", "b": "2"}),
    ("MODIFIED", {"a": "3", "b": "2"}),
    ("DELETED", {"a": "3", "b": "2"}),
], seen

# Pages.
for n in range(5):
    core.create_namespaced_secret("default", client.V1Secret(metadata={"name": f"p{n}", "labels": {"p": "1"}}))
names, token = [], None
while True:
    page = core.list_namespaced_secret("default", label_selector="p=1", limit=2, _continue=token)
    names += [item.metadata.name for item in page.items]
    token = page.metadata._continue
    if not token:
        break
assert names == [f"p{n}" for n in range(5)], names

# A pod: watched until it runs, logs, exec with exit code and stdin, delete.
script = "echo started; echo problem >&2; exec sleep 1000"
pod = client.V1Pod(
    metadata=client.V1ObjectMeta(name="py", labels={"app": "py"}),
    spec=client.V1PodSpec(
        termination_grace_period_seconds=0,
        containers=[client.V1Container(name="c", image="busybox:1.36", command=["sh", "-c", script])],
    ),
)
core.create_namespaced_pod("default", pod)
for event in watch.Watch().stream(core.list_namespaced_pod, "default", label_selector="app=py", timeout_seconds=90):
    if event["object"].status.phase == "Running":
        break
else:
    raise AssertionError("the pod never ran")
follower = watch.Watch()
lines = []
for line in follower.stream(core.read_namespaced_pod_log, "py", "default"):
    lines.append(line)
    if len(lines) == 2:
        follower.stop()
        break
assert sorted(lines) == ["problem", "started"], lines
assert core.read_namespaced_pod_log("py", "default", tail_lines=1).strip() in lines

run = dict(stderr=True, stdin=False, stdout=True, tty=False)
exec_ = core.connect_get_namespaced_pod_exec
said = stream(exec_, "py", "default", command=["echo", "inside"], **run)
assert said == "inside\n", said
session = stream(
    exec_, "py", "default", command=["sh", "-c", "read x; echo got $x; echo bad >&2; exit 3"],
    stderr=True, stdin=True, stdout=True, tty=False, _preload_content=False,
)
session.write_stdin("line\n")
session.run_forever(timeout=60)
assert session.read_stdout() == "got line\n" and session.read_stderr() == "bad\n"
assert session.returncode == 3, session.returncode
core.delete_namespaced_pod("py", "default")

# Scale by its subresource; a selector of kinds; an error in the API's own words.
template = client.V1PodTemplateSpec(
    metadata={"labels": {"app": "pyd"}},
    spec=client.V1PodSpec(containers=[client.V1Container(name="c", image="busybox:1.36", command=["sleep", "1000"])]),
)
spec = client.V1DeploymentSpec(replicas=1, selector={"matchLabels": {"app": "pyd"}}, template=template)
apps.create_namespaced_deployment("default", client.V1Deployment(metadata={"name": "pyd"}, spec=spec))
scaled = apps.patch_namespaced_deployment_scale("pyd", "default", {"spec": {"replicas": 2}})
assert scaled.spec.replicas == 2
assert apps.read_namespaced_deployment("pyd", "default").spec.replicas == 2
apps.delete_namespaced_deployment("pyd", "default", propagation_policy="Foreground")
try:
    core.read_namespaced_pod("nope", "default")
    raise AssertionError("a pod that is not there")
except ApiException as error:
    assert error.status == 404 and 'pods \\"nope\\" not found' in error.body, error.body
print("python is content")
