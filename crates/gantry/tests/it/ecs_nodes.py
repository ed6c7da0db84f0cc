"""Tasks on a joined node through boto3: their logs, credentials, protection and exec. Runs in the server's namespace."""

import json
import sys
import time

import boto3

from logs import Channel, patiently

session = boto3.session.Session("testing", "testing", region_name="us-east-1")
ecs, iam, logs = (session.client(s, endpoint_url="http://127.0.0.1:4566") for s in ("ecs", "iam", "logs"))
ROLE = "arn:aws:iam::123456789012:role/worker"
ASK = """trap exit TERM
ask() { printf "$1 $2 HTTP/1.0\\r\\nContent-Length: ${#3}\\r\\n\\r\\n$3" | nc 169.254.170.2 80 | sed '1,/^\\r$/d'; echo; }
ask GET $AWS_CONTAINER_CREDENTIALS_RELATIVE_URI
state=/${ECS_AGENT_URI#http://*/}/task-protection/v1/state
ask PUT $state '{"ProtectionEnabled":true,"ExpiresInMinutes":60}'
ask GET $state
i=0; while true; do echo line $i; i=$((i+1)); sleep 0.05; done"""
NETWORK = {"awsvpcConfiguration": {"subnets": ["subnet-default-a"]}}


def define():
    trust = {"Version": "2012-10-17", "Statement": []}
    iam.create_role(RoleName="worker", AssumeRolePolicyDocument=json.dumps(trust))
    log = {"logDriver": "awslogs", "options": {"awslogs-group": "far", "awslogs-create-group": "true",
           "awslogs-region": "us-east-1", "awslogs-stream-prefix": "p"}}
    container = {"name": "c", "image": "busybox:1.36", "entryPoint": ["sh", "-c"], "command": [ASK], "logConfiguration": log}
    ecs.register_task_definition(
        family="far", networkMode="awsvpc", requiresCompatibilities=["FARGATE"], cpu="256", memory="512",
        taskRoleArn=ROLE, executionRoleArn=ROLE, containerDefinitions=[container],
    )


def tasks():
    arns = ecs.list_tasks(cluster="far", serviceName="far")["taskArns"]
    return ecs.describe_tasks(cluster="far", tasks=arns)["tasks"] if arns else []


def lines():
    """What the service's task wrote."""
    if not (there := tasks()):
        return []
    stream = f"p/c/{there[0]['taskArn'].split('/')[-1]}"
    try:
        pages = logs.get_paginator("filter_log_events").paginate(logGroupName="far", logStreamNames=[stream])
        return [event["message"] for page in pages for event in page["events"]]
    except logs.exceptions.ResourceNotFoundException:
        return []


def numbers():
    return [int(line.split()[1]) for line in lines() if line.startswith("line ")]


def before():
    define()
    ecs.create_cluster(clusterName="far")
    ecs.create_service(
        cluster="far", serviceName="far", taskDefinition="far", desiredCount=1, launchType="FARGATE",
        networkConfiguration=NETWORK, enableExecuteCommand=True,
    )
    said = patiently("lines", lambda: (found := lines()) and any("line 3" in line for line in found) and found)
    credentials, changed, kept = (json.loads(line) for line in said[:3])
    assert credentials["RoleArn"] == ROLE and credentials["Token"], said
    assert changed["protection"]["ProtectionEnabled"] is True and "ExpirationDate" in kept["protection"], said
    sts = boto3.client(
        "sts", region_name="us-east-1", endpoint_url="http://127.0.0.1:4566", aws_access_key_id=credentials["AccessKeyId"],
        aws_secret_access_key=credentials["SecretAccessKey"], aws_session_token=credentials["Token"],
    )
    assert ":assumed-role/worker/" in sts.get_caller_identity()["Arn"]
    (task,) = tasks()
    patiently("running", lambda: tasks()[0]["lastStatus"] == "RUNNING")
    channel = Channel(ecs.execute_command(cluster="far", task=task["taskArn"], interactive=True, command="sh")["session"])
    while not channel.open:
        channel.step()
    channel.send(1, b"echo sum $((20+22))\r")
    channel.until("sum 42")
    channel.send(1, b"exit\r")
    while not channel.closed:
        channel.step()


def near():
    """One more task, wherever there is room."""
    (task,) = ecs.run_task(cluster="far", taskDefinition="far", launchType="FARGATE", networkConfiguration=NETWORK)["tasks"]
    patiently("runs", lambda: "RUNNING" in [t["lastStatus"] for t in ecs.describe_tasks(cluster="far", tasks=[task["taskArn"]])["tasks"]])


def after():
    """Nothing is lost while the server was away; a batch may be there twice."""
    last = max(numbers())
    patiently("new lines", lambda: max(numbers()) > last + 5)
    found = numbers()
    missing = set(range(max(found))) - set(found)
    assert not missing, f"lost {sorted(missing)[:20]} of {max(found)}"


{"before": before, "near": near, "after": after}[sys.argv[1]]()
print("far tasks are content")
