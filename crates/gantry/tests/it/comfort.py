"""Events of ECS and for ECS, through boto3, on the instance in whose network namespace this runs."""

import json
import time

import boto3

session = boto3.session.Session("testing", "testing", region_name="us-east-1")
ecs, logs, events = (session.client(s, endpoint_url="http://127.0.0.1:4566") for s in ("ecs", "logs", "events"))
ARN = "arn:aws:{}:us-east-1:123456789012:{}".format


def patiently(what, wanted, seconds=240):
    deadline = time.time() + seconds
    while True:
        found = wanted()
        if found:
            return found
        assert time.time() < deadline, what
        time.sleep(0.05)


def rule(name, target, **what):
    events.put_rule(Name=name, **what)
    answer = events.put_targets(Rule=name, Targets=[{"Id": "1", **target}])
    assert answer["FailedEntryCount"] == 0, answer


def told():
    try:
        found = logs.filter_log_events(logGroupName="/aws/events/ecs")["events"]
    except logs.exceptions.ResourceNotFoundException:
        return []
    return [json.loads(event["message"]) for event in found]


ecs.create_cluster(clusterName="comfort")
container = {"name": "job", "image": "busybox:1.36", "memory": 32, "entryPoint": ["sh", "-c"], "command": ["exit 3"]}
ecs.register_task_definition(
    family="job", networkMode="awsvpc", requiresCompatibilities=["FARGATE"], cpu="256", memory="512",
    containerDefinitions=[container])
pattern = {"source": ["aws.ecs"], "detail-type": ["ECS Task State Change"], "detail": {"group": [{"prefix": "family:"}]}}
rule("told", {"Arn": ARN("logs", "log-group:/aws/events/ecs")}, EventPattern=json.dumps(pattern))
network = {"awsvpcConfiguration": {"Subnets": ["subnet-default-a"]}}
wanted = {"TaskDefinitionArn": ARN("ecs", "task-definition/job"), "LaunchType": "FARGATE", "NetworkConfiguration": network}
template = {"InputPathsMap": {"code": "$.detail.code"},
            "InputTemplate": '{"containerOverrides": [{"name": "job", "command": ["sleep 5; exit <code>"]}]}'}
target = {"Arn": ARN("ecs", "cluster/comfort"), "EcsParameters": wanted, "InputTransformer": template}
rule("run", target, EventPattern=json.dumps({"source": ["shop"], "detail": {"code": [{"numeric": [">", 5]}]}}))
rule("seldom", target, ScheduleExpression="cron(0 3 1 1 ? 2150)")
try:
    events.put_rule(Name="bad", ScheduleExpression="every night")
    raise SystemExit("a schedule that is none was taken")
except events.exceptions.ClientError as error:
    assert error.response["Error"]["Code"] == "ValidationException", error
for code in (5, 7):
    entry = {"Source": "shop", "DetailType": "order", "Detail": json.dumps({"code": code})}
    assert events.put_events(Entries=[entry])["FailedEntryCount"] == 0

stopped = patiently("the task stops", lambda: [e for e in told() if e["detail"]["lastStatus"] == "STOPPED"])
assert len(stopped) == 1, stopped
detail = stopped[0]["detail"]
assert detail["containers"][0]["exitCode"] == 7 and detail["startedBy"] == "events-rule/run", detail
assert detail["stopCode"] == "EssentialContainerExited" and stopped[0]["resources"] == [detail["taskArn"]], stopped
# As on AWS events may overtake each other; a task's versions say which was first.
def states():
    return [d["lastStatus"] for d in sorted((e["detail"] for e in told()), key=lambda d: d["version"])]


patiently("every state is told", lambda: (s := states())[0] == "PROVISIONING" and s[-1] == "STOPPED" and "RUNNING" in s)
print("comfort is content")
