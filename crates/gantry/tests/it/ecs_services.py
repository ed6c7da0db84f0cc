"""Keeps ECS services through boto3 on the instance in whose network namespace this runs."""

import json
import os
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import boto3
from botocore.exceptions import ClientError

NETWORK = {"awsvpcConfiguration": {"subnets": ["subnet-default-a", "subnet-default-b"]}}
FAST = {"Delay": 1, "MaxAttempts": 240}
session = boto3.session.Session("testing", "testing", region_name="us-east-1")


def aws(service):
    return session.client(service, endpoint_url="http://127.0.0.1:4566")


ecs, elb = aws("ecs"), aws("elbv2")


def define(family, script, mode="awsvpc", **more):
    container = {
        "name": "web", "image": "busybox:1.36", "entryPoint": ["sh", "-c"], "command": [script], "memory": 32,
        "stopTimeout": 2, "portMappings": [{"containerPort": 80}], **more}
    place = {"requiresCompatibilities": ["FARGATE", "EC2"], "cpu": "256", "memory": "512"} if mode == "awsvpc" else {}
    ecs.register_task_definition(family=family, networkMode=mode, containerDefinitions=[container], **place)


def httpd(word):
    return f"mkdir /w; echo {word} > /w/x; exec httpd -f -h /w -p 80"


def service(name):
    return ecs.describe_services(cluster="prod", services=[name])["services"][0]


def events(name):
    return [e["message"] for e in service(name)["events"]]


def stable(name):
    ecs.get_waiter("services_stable").wait(cluster="prod", services=[name], WaiterConfig=FAST)


def patiently(what, wanted, seconds=240):
    deadline = time.time() + seconds
    while not wanted():
        assert time.time() < deadline, what()
        time.sleep(0.1)


def completed(name, **more):
    def done():
        seen = service(name)["deployments"]
        return len(seen) == 1 and seen[0]["rolloutState"] == "COMPLETED"

    patiently(lambda: f"{name} is not there: {json.dumps(service(name), default=str)}", done, **more)


def tasks(name, status="RUNNING"):
    arns = ecs.list_tasks(cluster="prod", serviceName=name, desiredStatus=status)["taskArns"]
    return ecs.describe_tasks(cluster="prod", tasks=arns)["tasks"] if arns else []


def deployments(name):
    return ecs.list_service_deployments(cluster="prod", service=name)["serviceDeployments"]


def create(name, family, count, **more):
    more = {"launchType": "FARGATE", "networkConfiguration": NETWORK, **more}
    return ecs.create_service(cluster="prod", serviceName=name, taskDefinition=family, desiredCount=count, **more)["service"]


def end(name):
    ecs.delete_service(cluster="prod", service=name, force=True)
    ecs.get_waiter("services_inactive").wait(cluster="prod", services=[name], WaiterConfig=FAST)
    assert not tasks(name), tasks(name)


def life():
    define("life", "sleep 1000")
    made = create("life", "life", 3, propagateTags="SERVICE", enableECSManagedTags=True, tags=[{"key": "team", "value": "blue"}])
    first = made["deployments"][0]
    assert first["id"].startswith("ecs-svc/") and len(first["id"]) == len("ecs-svc/") + 19, first
    completed("life")
    stable("life")
    up = tasks("life")
    assert {t["group"] for t in up} == {"service:life"} and {t["startedBy"] for t in up} == {first["id"]}, up
    assert sorted(t["availabilityZone"][-1] for t in up) in (["a", "a", "b"], ["a", "b", "b"]), up
    tags = ecs.list_tags_for_resource(resourceArn=up[0]["taskArn"])["tags"]
    assert {t["key"]: t["value"] for t in tags} == {
        "team": "blue", "aws:ecs:clusterName": "prod", "aws:ecs:serviceName": "life"}, tags
    patiently(lambda: events("life"), lambda: events("life")[0] == "(service life) has reached a steady state.")
    said = events("life")
    assert any(e.startswith("(service life) has started 3 tasks: (task ") for e in said), said
    # A task that somebody stops is replaced.
    ecs.stop_task(cluster="prod", task=up[0]["taskArn"])
    patiently(lambda: tasks("life"), lambda: len({t["taskArn"] for t in tasks("life")} - {t["taskArn"] for t in up}) == 1)
    # A protected one outlives scaling.
    kept = up[1]["taskArn"]
    ecs.update_task_protection(cluster="prod", tasks=[kept], protectionEnabled=True)
    ecs.update_service(cluster="prod", service="life", desiredCount=1)
    stable("life")
    assert [t["taskArn"] for t in tasks("life")] == [kept], tasks("life")
    ecs.update_task_protection(cluster="prod", tasks=[kept], protectionEnabled=False)
    ecs.update_service(cluster="prod", service="life", forceNewDeployment=True)
    completed("life")
    assert kept not in [t["taskArn"] for t in tasks("life")]
    patiently(lambda: deployments("life"), lambda: [r["status"] for r in deployments("life")] == ["SUCCESSFUL"] * 2)
    records = deployments("life")
    whole = ecs.describe_service_deployments(serviceDeploymentArns=[records[0]["serviceDeploymentArn"]])["serviceDeployments"][0]
    source = whole["sourceServiceRevisions"][0]["arn"]
    assert source.endswith("/" + first["id"].split("/")[1]), whole
    revision = ecs.describe_service_revisions(serviceRevisionArns=[source])["serviceRevisions"][0]
    assert revision["containerImages"][0]["image"] == "busybox:1.36" and revision["launchType"] == "FARGATE", revision
    end("life")


def breaker():
    breaks = {"deploymentCircuitBreaker": {"enable": True, "rollback": True}}
    define("breaks", "sleep 1000")
    create("breaks", "breaks", 1, deploymentConfiguration=breaks)
    completed("breaks")
    first = service("breaks")
    define("breaks", "exit 3")
    ecs.update_service(cluster="prod", service="breaks", taskDefinition="breaks")
    patiently(lambda: service("breaks"), lambda: any("rolling back to deployment" in e for e in events("breaks")))
    completed("breaks")
    seen = service("breaks")
    assert seen["taskDefinition"] == first["taskDefinition"], seen
    assert seen["deployments"][0]["id"] == first["deployments"][0]["id"], seen
    patiently(lambda: deployments("breaks"), lambda: deployments("breaks")[0]["status"] == "ROLLBACK_SUCCESSFUL")
    stopped = tasks("breaks", "STOPPED")
    assert [t["stopCode"] for t in stopped].count("EssentialContainerExited") >= 3, stopped
    end("breaks")


def unhealthy():
    """A task that fails its own check is replaced, and only then stopped."""
    check = {"command": ["CMD-SHELL", "! test -f /tmp/bad"], "interval": 5, "timeout": 60, "retries": 1}
    define("sick", "sleep 1000", healthCheck=check)
    create("sick", "sick", 1)
    completed("sick")
    [task] = tasks("sick")
    pod = task["taskArn"].split("/")[-1]
    assert os.system(f"kubectl exec -n ecs-prod {pod} -c web -- touch /tmp/bad") == 0
    patiently(lambda: events("sick"), lambda: f"(service sick) (task {pod}) failed container health checks." in events("sick"))
    stable("sick")
    patiently(lambda: events("sick"), lambda: "stopCode" in ecs.describe_tasks(cluster="prod", tasks=[pod])["tasks"][0])
    seen = ecs.describe_tasks(cluster="prod", tasks=[pod])["tasks"][0]
    assert (seen["stopCode"], seen["stoppedReason"]) == ("ServiceSchedulerInitiated", "Task failed container health checks"), seen
    end("sick")


def daemon():
    define("daemon", "sleep 1000", mode="bridge")
    ecs.create_service(cluster="prod", serviceName="daemon", taskDefinition="daemon", schedulingStrategy="DAEMON")
    completed("daemon")
    assert service("daemon")["desiredCount"] == 1
    ecs.update_service(cluster="prod", service="daemon", forceNewDeployment=True)
    completed("daemon")
    [task] = tasks("daemon")
    [instance] = ecs.list_container_instances(cluster="prod")["containerInstanceArns"]
    assert task["containerInstanceArn"] == instance, task
    ecs.update_container_instances_state(cluster="prod", containerInstances=[instance], status="DRAINING")
    patiently(lambda: tasks("daemon"), lambda: not tasks("daemon"))
    ecs.update_container_instances_state(cluster="prod", containerInstances=[instance], status="ACTIVE")
    patiently(lambda: tasks("daemon"), lambda: len(tasks("daemon")) == 1)
    end("daemon")


def nowhere():
    define("huge", "sleep 1000", mode="bridge", memory=10_000_000)
    ecs.create_service(cluster="prod", serviceName="huge", taskDefinition="huge", desiredCount=1, launchType="EC2")
    wanted = "(service huge) was unable to place a task because no container instance met all of its requirements. " \
        "The closest matching (container-instance "
    patiently(lambda: events("huge"), lambda: any(e.startswith(wanted) for e in events("huge")))
    assert any("has insufficient memory available." in e for e in events("huge")), events("huge")
    end("huge")


def balanced():
    """A rolling update behind a load balancer: no request fails."""
    group = elb.create_target_group(
        Name="web", Protocol="HTTP", Port=80, VpcId="vpc-default", TargetType="ip", HealthCheckIntervalSeconds=5,
        HealthCheckTimeoutSeconds=4, HealthyThresholdCount=2, UnhealthyThresholdCount=10, HealthCheckPath="/x")["TargetGroups"][0]["TargetGroupArn"]
    elb.modify_target_group_attributes(
        TargetGroupArn=group, Attributes=[{"Key": "deregistration_delay.timeout_seconds", "Value": "5"}])
    made = elb.create_load_balancer(Name="web", Subnets=["subnet-default-a", "subnet-default-b"])["LoadBalancers"][0]
    elb.create_listener(
        LoadBalancerArn=made["LoadBalancerArn"], Protocol="HTTP", Port=8088,
        DefaultActions=[{"Type": "forward", "TargetGroupArn": group}])
    elb.get_waiter("load_balancer_available").wait(LoadBalancerArns=[made["LoadBalancerArn"]], WaiterConfig=FAST)
    define("web", httpd("one"))
    balancers = [{"targetGroupArn": group, "containerName": "web", "containerPort": 80}]
    create("web", "web", 2, loadBalancers=balancers)
    completed("web")
    def health():
        told = elb.describe_target_health(TargetGroupArn=group)["TargetHealthDescriptions"]
        return [t["TargetHealth"]["State"] for t in told]

    patiently(health, lambda: health() == ["healthy"] * 2)
    answers, failures, over = [], [], threading.Event()

    def ask():
        while not over.is_set():
            try:
                answers.append(urllib.request.urlopen("http://10.99.0.1:8088/x", timeout=30).read().strip())
            except OSError as error:
                failures.append(repr(error))
            time.sleep(0.01)

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    define("web", httpd("two"))
    ecs.update_service(cluster="prod", service="web", taskDefinition="web")
    completed("web", seconds=240)
    patiently(lambda: len(answers), lambda: len(answers) > 100 and answers[-1] == b"two")
    over.set()
    for client in clients:
        client.join()
    assert not failures, failures[:5]
    assert answers[0] == b"one" and answers[-1] == b"two", answers[-1]
    said = " ".join(events("web"))
    for words in ("registered 1 targets in (target-group arn:", "registered 2 targets in", "deregistered"):
        if words in said:
            break
    else:
        raise AssertionError(said)
    assert "has begun draining connections on" in said, said
    end("web")
    patiently(health, lambda: not health())


def refused():
    define("plain", "sleep 1")
    for more, words in [
        ({"deploymentConfiguration": {"maximumPercent": 99}}, "maximumPercent"),
        ({"desiredCount": -1}, "desiredCount"),
        ({"launchType": "FARGATE", "schedulingStrategy": "DAEMON"}, "daemon scheduling strategy"),
    ]:
        try:
            ecs.create_service(**{"cluster": "prod", "serviceName": "no", "taskDefinition": "plain", "desiredCount": 1,
                                  "launchType": "FARGATE", "networkConfiguration": NETWORK, **more})
            raise AssertionError(more)
        except ClientError as error:
            assert words in str(error), error
    assert ecs.describe_services(cluster="prod", services=["no"])["failures"][0]["reason"] == "MISSING"


def instances():
    daemon()
    nowhere()


ecs.create_cluster(clusterName="prod")
checks = [life, breaker, unhealthy, instances, balanced, refused]
only = os.environ.get("CHECK", "")
with ThreadPoolExecutor(len(checks)) as pool:
    runs = [(check.__name__, pool.submit(check)) for check in checks if only in check.__name__]
failed = []
for name, one in runs:
    try:
        one.result()
    except Exception as error:
        failed.append(f"{name}: {error!r}")
assert not failed, "\n".join(failed)
print("services are content")
