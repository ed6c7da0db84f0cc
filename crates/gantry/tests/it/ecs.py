"""Runs ECS tasks through boto3 on the instance in whose network namespace this runs."""

import json
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import boto3

NODE = "10.99.0.1"
NETWORK = {"awsvpcConfiguration": {"subnets": ["subnet-default-a"]}}
session = boto3.session.Session("testing", "testing", region_name="us-east-1")


def aws(service):
    return session.client(service, endpoint_url="http://127.0.0.1:4566")


ecs = aws("ecs")


def shell(name, script, **more):
    more.setdefault("memory", 32)
    return {"name": name, "image": "busybox:1.36", "entryPoint": ["sh", "-c"], "command": [script], **more}


def define(family, *containers, mode="awsvpc", **more):
    if mode == "awsvpc":
        more = {"requiresCompatibilities": ["FARGATE", "EC2"], "cpu": "256", "memory": "512", **more}
    made = ecs.register_task_definition(
        family=family, networkMode=mode, containerDefinitions=list(containers), **more
    )
    return made["taskDefinition"]["taskDefinitionArn"]


def run(definition, launch="FARGATE", awsvpc=True, **more):
    if awsvpc:
        more["networkConfiguration"] = NETWORK
    answer = ecs.run_task(cluster="prod", taskDefinition=definition, launchType=launch, **more)
    assert not answer["failures"], answer["failures"]
    return answer["tasks"][0]["taskArn"]


def task(arn):
    return ecs.describe_tasks(cluster="prod", tasks=[arn])["tasks"][0]


def until(arn, state, seconds=240):
    deadline = time.time() + seconds
    while True:
        seen = task(arn)
        if seen["lastStatus"] == state:
            return seen
        assert time.time() < deadline, f"not {state}: {json.dumps(seen, default=str)}"
        time.sleep(0.02)


def kubectl(*args):
    done = subprocess.run(["kubectl", *args], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def inside(arn, container, script):
    return kubectl("exec", "-n", "ecs-prod", arn.split("/")[-1], "-c", container, "--", "sh", "-c", script)


def patiently(what, wanted):
    deadline = time.time() + 240
    while not wanted():
        assert time.time() < deadline, what
        time.sleep(0.05)


def fargate():
    web = define("web", shell("web", "echo hello > /www/x; httpd -f -h /www -p 80", portMappings=[{"containerPort": 80}], stopTimeout=2))
    arn = run(web)
    seen = until(arn, "RUNNING")
    details = {d["name"]: d["value"] for d in seen["attachments"][0]["details"]}
    assert details["subnetId"] == "subnet-default-a" and seen["attachments"][0]["status"] == "ATTACHED", seen
    address = details["privateIPv4Address"]
    assert seen["containers"][0]["networkInterfaces"][0]["privateIpv4Address"] == address

    def served():
        try:
            return urllib.request.urlopen(f"http://{address}/x", timeout=2).read() == b"hello\n"
        except OSError:
            return False

    patiently("the task answers", served)
    rows = kubectl("get", "tasks.ecs.gantry.dev,pods", "-A")
    assert rows.count(arn.split("/")[-1]) == 2, rows
    ecs.stop_task(cluster="prod", task=arn, reason="no more needed")
    seen = until(arn, "STOPPED")
    assert (seen["stopCode"], seen["stoppedReason"]) == ("UserInitiated", "no more needed"), seen
    assert seen["attachments"][0]["status"] == "DELETED"
    patiently("its pod is gone", lambda: arn.split("/")[-1] not in kubectl("get", "pods", "-n", "ecs-prod"))


def bridge():
    served = shell("web", "mkdir /w; httpd -f -h /w -p 80", portMappings=[{"containerPort": 80, "hostPort": 0}])
    definition = define("bridge", {**served, "stopTimeout": 2}, mode="bridge")
    arns = [run(definition, "EC2", awsvpc=False) for _ in range(2)]
    ports = []
    for arn in arns:
        seen = until(arn, "RUNNING")
        assert "/prod/" in seen["containerInstanceArn"] and seen["attachments"] == [], seen
        ports.append(seen["containers"][0]["networkBindings"][0]["hostPort"])

    def answers(port):
        try:
            urllib.request.urlopen(f"http://{NODE}:{port}/", timeout=2)
        except urllib.error.HTTPError as error:
            return error.code == 404
        except OSError:
            return False
        return True

    for port in ports:
        assert port >= 32768
        patiently(f"port {port} answers", lambda port=port: answers(port))
    assert ports[0] != ports[1], ports
    for arn in arns:
        ecs.stop_task(cluster="prod", task=arn)
    for arn in arns:
        until(arn, "STOPPED")


def essential():
    shared = {"mountPoints": [{"sourceVolume": "v", "containerPath": "/v"}]}
    script = "trap 'exit 9' TERM; touch /v/up; while :; do sleep 0.1; done"
    side = shell("side", script, essential=False, stopTimeout=100, **shared)
    main = shell("main", "until [ -e /v/up ]; do sleep 0.1; done; exit 3", **shared)
    seen = until(run(define("essential", main, side, volumes=[{"name": "v"}])), "STOPPED")
    codes = {c["name"]: c["exitCode"] for c in seen["containers"]}
    assert codes == {"main": 3, "side": 9}, codes
    assert seen["stopCode"] == "EssentialContainerExited", seen
    assert seen["stoppedReason"] == "Essential container in task exited", seen


def order():
    probe = {"command": ["CMD-SHELL", "test -f /tmp/ok"], "interval": 5, "timeout": 60, "retries": 3}
    web = shell("web", "sleep 1000", stopTimeout=2, dependsOn=[
        {"containerName": "db", "condition": "HEALTHY"}, {"containerName": "init", "condition": "SUCCESS"}])
    db = shell("db", "touch /tmp/ok; sleep 1000", stopTimeout=2, healthCheck=probe)
    arn = run(define("order", web, db, shell("init", "sleep 1", essential=False)))
    seen = until(arn, "RUNNING")
    states = {c["name"]: (c["lastStatus"], c["healthStatus"]) for c in seen["containers"]}
    assert states == {"web": ("RUNNING", "UNKNOWN"), "db": ("RUNNING", "HEALTHY"), "init": ("STOPPED", "UNKNOWN")}, states
    assert seen["healthStatus"] == "HEALTHY", seen
    ecs.stop_task(cluster="prod", task=arn)
    until(arn, "STOPPED")


def unmet():
    web = shell("web", "sleep 1000", dependsOn=[{"containerName": "init", "condition": "SUCCESS"}])
    seen = until(run(define("unmet", web, shell("init", "exit 1", essential=False))), "STOPPED")
    assert seen["stopCode"] == "TaskFailedToStart", seen


def failures():
    missing = {"name": "x", "image": "localhost:5000/no/such:1", "essential": True}
    seen = until(run(define("pull", missing)), "STOPPED")
    assert seen["stopCode"] == "TaskFailedToStart", seen
    for words in (seen["stoppedReason"], seen["containers"][0]["reason"]):
        assert words.startswith("CannotPullContainerError: ") and "localhost:5000/no/such:1" in words, words
    assert "exitCode" not in seen["containers"][0], seen
    nothing = {**shell("x", ""), "entryPoint": ["/no/such"]}
    seen = until(run(define("start", nothing)), "STOPPED")
    assert seen["stoppedReason"].startswith("CannotStartContainerError: "), seen
    greedy = shell("x", "x=a; while :; do x=$x$x$x$x; done", memory=16)
    seen = until(run(define("memory", greedy)), "STOPPED")
    assert seen["containers"][0]["exitCode"] == 137, seen
    assert seen["stoppedReason"] == "OutOfMemoryError: Container killed due to memory usage", seen


def details():
    main = shell(
        "Main_1", "cat /data/shared; sleep 1000", stopTimeout=2, user="1000:2000", readonlyRootFilesystem=True,
        ulimits=[{"name": "nofile", "softLimit": 100, "hardLimit": 200}], workingDirectory="/tmp",
        environment=[{"name": "TEXT", "value": "$(HOME) $$"}], volumesFrom=[{"sourceContainer": "writer"}],
        linuxParameters={"capabilities": {"drop": ["ALL"]}}, systemControls=[{"namespace": "net.core.somaxconn", "value": "77"}],
        dependsOn=[{"containerName": "writer", "condition": "SUCCESS"}])
    writer = shell("writer", "echo shared > /data/shared", essential=False, mountPoints=[{"sourceVolume": "v", "containerPath": "/data"}])
    arn = run(define("details", main, writer, volumes=[{"name": "v"}]), tags=[{"key": "team", "value": "blue"}])
    until(arn, "RUNNING")
    pod = arn.split("/")[-1]
    name = json.loads(kubectl("get", "pod", "-n", "ecs-prod", pod, "-o", "json"))["spec"]["containers"][0]["name"]
    script = "id -u; id -g; ulimit -n; ulimit -Hn; pwd; cat /data/shared /proc/sys/net/core/somaxconn; echo \"$TEXT\"; " \
        "touch /x 2>/dev/null || echo read-only; grep CapBnd /proc/self/status"
    said = inside(arn, name, script).split("\n")
    wanted = ["1000", "2000", "100", "200", "/tmp", "shared", "77", "$(HOME) $$", "read-only", "CapBnd:\t0000000000000000", ""]
    assert said == wanted, said

    def ask(path, who=arn, container=name):
        request = f"printf 'GET {path} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' | nc -w 60 169.254.170.2 80"
        head, _, body = inside(who, container, request).replace("\r", "").partition("\n\n")
        return int(head.split(" ")[1]), json.loads(body)

    uri = inside(arn, name, "echo $ECS_CONTAINER_METADATA_URI_V4").strip().removeprefix("http://169.254.170.2")
    code, own = ask(uri)
    assert (code, own["Name"], own["KnownStatus"]) == (200, "Main_1", "RUNNING"), own
    code, whole = ask(uri + "/taskWithTags")
    assert whole["TaskARN"] == arn and whole["TaskTags"] == {"team": "blue"} and whole["Limits"]["CPU"] == 0.25, whole
    assert [c["KnownStatus"] for c in whole["Containers"]] == ["RUNNING", "STOPPED"], whole
    assert ask(uri + "/stats")[1]["memory_stats"]["usage"] > 0
    # Neither an unknown id nor another task's address opens anything.
    assert ask("/v4/00000000000000000000000000000000")[0] == 404
    assert ask("/v2/credentials/00000000-0000-0000-0000-000000000000")[0] == 400
    other = run(define("other", shell("spy", "sleep 1000", stopTimeout=2)))
    until(other, "RUNNING")
    assert ask(uri, other, "spy")[0] == 404
    for one in (arn, other):
        ecs.stop_task(cluster="prod", task=one)
        until(one, "STOPPED")


def trusted():
    aws("ssm").put_parameter(Name="/app/plain", Value="one", Type="SecureString")
    secret = aws("secretsmanager").create_secret(Name="app/db", SecretString=json.dumps({"password": "two"}))["ARN"]
    role = aws("iam").create_role(RoleName="app", AssumeRolePolicyDocument='{"Version": "2012-10-17", "Statement": []}')
    role = role["Role"]["Arn"]
    main = shell("main", "sleep 1000", stopTimeout=2, secrets=[
        {"name": "ONE", "valueFrom": "/app/plain"}, {"name": "TWO", "valueFrom": f"{secret}:password::"}])
    arn = run(define("trusted", main, taskRoleArn=role, executionRoleArn=role))
    until(arn, "RUNNING")
    assert inside(arn, "main", "echo $ONE $TWO") == "one two\n"
    fetch = "printf \"GET $AWS_CONTAINER_CREDENTIALS_RELATIVE_URI HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n\" | nc -w 60 169.254.170.2 80"
    held = json.loads(inside(arn, "main", fetch).replace("\r", "").partition("\n\n")[2])
    assert held["RoleArn"] == role, held
    own = boto3.session.Session(held["AccessKeyId"], held["SecretAccessKey"], held["Token"], region_name="us-east-1")
    caller = own.client("sts", endpoint_url="http://127.0.0.1:4566").get_caller_identity()
    # Nobody else's pod gets there by the annotation.
    forged = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "forged", "namespace": "ecs-prod", "annotations": {
        "ecs.gantry.dev/task": json.dumps({"version": 1, "task": {"roleArn": role, "credentialsId": "x"}})}},
        "spec": {"containers": [{"name": "c", "image": "busybox:1.36"}]}}
    done = subprocess.run(["kubectl", "create", "-f", "-"], input=json.dumps(forged), capture_output=True, text=True)
    assert done.returncode != 0 and "task controller only" in done.stderr, done
    assert f"assumed-role/app/{arn.split('/')[-1]}" in caller["Arn"], caller
    ecs.stop_task(cluster="prod", task=arn)
    until(arn, "STOPPED")
    missing = shell("main", "sleep 1", secrets=[{"name": "X", "valueFrom": "/no/such"}])
    seen = until(run(define("missing", missing, executionRoleArn=role)), "STOPPED")
    assert seen["stoppedReason"].startswith("ResourceInitializationError: unable to pull secrets"), seen


def overridden():
    arn = run(
        define("override", shell("main", "exit 1", environment=[{"name": "CODE", "value": "1"}])), "EC2",
        overrides={"containerOverrides": [
            {"name": "main", "command": ["exit $CODE"], "environment": [{"name": "CODE", "value": "42"}]}]})
    assert until(arn, "STOPPED")["containers"][0]["exitCode"] == 42


def spot():
    """Spot capacity that is wanted back."""
    strategy = [{"capacityProvider": "FARGATE_SPOT", "weight": 1}]
    ecs.put_cluster_capacity_providers(
        cluster="prod", capacityProviders=["FARGATE", "FARGATE_SPOT"], defaultCapacityProviderStrategy=[])
    definition = define("spot", shell("main", "trap 'exit 0' TERM; touch /up; while :; do sleep 0.1; done"))
    answer = ecs.run_task(
        cluster="prod", taskDefinition=definition, capacityProviderStrategy=strategy, networkConfiguration=NETWORK)
    assert not answer["failures"], answer
    arn = answer["tasks"][0]["taskArn"]
    assert until(arn, "RUNNING")["capacityProviderName"] == "FARGATE_SPOT"
    inside(arn, "main", "until [ -e /up ]; do sleep 0.1; done")
    kubectl("annotate", "tasks.ecs.gantry.dev", "-n", "ecs-prod", arn.split("/")[-1], "ecs.gantry.dev/interrupt=now")
    seen = until(arn, "STOPPED")
    assert (seen["stopCode"], seen["containers"][0]["exitCode"]) == ("SpotInterruption", 0), seen
    assert seen["stoppedReason"] == "Your Spot Task was interrupted.", seen


def outside():
    """A pod that is deleted through the other API is a task that stopped."""
    arn = run(define("outside", shell("main", "sleep 1000", stopTimeout=2)))
    until(arn, "RUNNING")
    kubectl("delete", "pod", "-n", "ecs-prod", arn.split("/")[-1], "--wait=false")
    seen = until(arn, "STOPPED")
    assert seen["stopCode"] == "UserInitiated" and seen["containers"][0]["exitCode"] == 137, seen


def files():
    """Environment files come from S3; devices and memory file systems act; a log router has its configuration."""
    s3 = aws("s3")
    s3.create_bucket(Bucket="conf")
    s3.put_object(Bucket="conf", Key="a/one.env", Body=b"# no\nA=1\nB=two words\nC=file\n")
    s3.put_object(Bucket="conf", Key="two.env", Body=b"A=2\nD=x=y\n")
    env = [{"type": "s3", "value": f"arn:aws:s3:::conf/{key}"} for key in ("a/one.env", "two.env")]
    linux = {
        "devices": [{"hostPath": "/dev/fuse", "containerPath": "/dev/mine", "permissions": ["read"]}],
        "tmpfs": [{"containerPath": "/scratch", "size": 8, "mountOptions": ["mode=1700"]}],
        "sharedMemorySize": 16,
    }
    sleep = "trap exit TERM; while :; do sleep 1; done"
    definition = define(
        "files",
        shell("main", sleep, linuxParameters=linux, environmentFiles=env, environment=[{"name": "C", "value": "definition"}]),
        {**shell("log", f"cat /fluent-bit/etc/fluent-bit.conf; nc -l -p 24224 | tr -cd a-z; echo; {sleep}"), "firelensConfiguration": {"type": "fluentbit"}},
        {
            **shell("app", f"echo told; {sleep}"),
            "logConfiguration": {"logDriver": "awsfirelens", "options": {"Name": "stdout"}},
        },
        mode="bridge",
        executionRoleArn="ecsTaskExecutionRole",
    )
    arn = run(definition, launch="EC2", awsvpc=False)
    until(arn, "RUNNING")
    script = "echo $A,$B,$C,$D; (: < /dev/mine) && echo read; (: > /dev/mine) 2> /dev/null || echo only"
    said = inside(arn, "main", script + "; df -k /scratch /dev/shm | grep -c tmpfs; stat -c %a /scratch").split()
    assert said == ["1,two", "words,definition,x=y", "read", "only", "2", "1700"], said
    patiently("the router is told", lambda: "told" in kubectl("logs", "-n", "ecs-prod", arn.split("/")[-1], "-c", "log"))
    said = kubectl("logs", "-n", "ecs-prod", arn.split("/")[-1], "-c", "log")
    for words in ("unix_path /var/run/fluent.sock", "Record ecs_task_definition files:1", "Match app-firelens*"):
        assert words in said, said
    ecs.stop_task(cluster="prod", task=arn)
    env[1]["value"] = "arn:aws:s3:::conf/none.env"
    arn = run(define("none", shell("main", sleep, environmentFiles=env), executionRoleArn="ecsTaskExecutionRole"))
    seen = until(arn, "STOPPED")
    assert seen["stoppedReason"].startswith("ResourceInitializationError: failed to download env files"), seen
    assert "NoSuchKey: The specified key does not exist." in seen["stoppedReason"], seen


def before(state):
    """Two tasks: one runs, one is just being started when Gantry is killed."""
    init = shell("init", "sleep 1", essential=False)
    web = shell("web", "sleep 1000", stopTimeout=2, dependsOn=[{"containerName": "init", "condition": "SUCCESS"}])
    definition = define("survivor", web, init)
    one = run(definition)
    seen = until(one, "RUNNING")
    ids = {c["name"]: c["runtimeId"] for c in seen["containers"]}
    with open(state, "w") as file:
        json.dump({"one": one, "two": run(definition), "ids": ids}, file)


def after(state):
    with open(state) as file:
        told = json.load(file)
    seen = until(told["one"], "RUNNING")
    assert {c["name"]: c["runtimeId"] for c in seen["containers"]} == told["ids"], seen
    until(told["two"], "RUNNING")
    for arn in (told["one"], told["two"]):
        ecs.stop_task(cluster="prod", task=arn)
        seen = until(arn, "STOPPED")
        assert [c["exitCode"] for c in seen["containers"]] == [137, 0], seen


ecs.create_cluster(clusterName="prod")
checks = [fargate, bridge, essential, order, unmet, failures, details, trusted, overridden, spot, outside, files]
if len(sys.argv) > 1:
    {"before": before, "after": after}[sys.argv[1]](sys.argv[2])
    checks = []
with ThreadPoolExecutor(4) as pool:
    runs = [(check.__name__, pool.submit(check)) for check in checks]
for name, one in runs:
    try:
        one.result()
    except Exception as error:
        raise SystemExit(f"{name}: {error!r}") from error
print("ECS is content")
