"""Task logs and exec through boto3, on the instance in whose network namespace this runs."""

import base64
import hashlib
import json
import os
import socket
import struct
import time
import uuid

import boto3
import botocore

session = boto3.session.Session("testing", "testing", region_name="us-east-1")
ecs, logs = (session.client(s, endpoint_url="http://127.0.0.1:4566") for s in ("ecs", "logs"))
CLUSTER = "logs"
SCRIPT = "echo hello; echo oops >&2; trap 'echo bye; exit 0' TERM; while true; do sleep 0.1; done"


def patiently(what, wanted, seconds=240):
    deadline = time.time() + seconds
    while True:
        found = wanted()
        if found:
            return found
        assert time.time() < deadline, what
        time.sleep(0.05)


def define(family, **options):
    log = {"logDriver": "awslogs", "options": {"awslogs-region": "us-east-1", "awslogs-stream-prefix": "p", **options}}
    container = {"name": "Web_1", "image": "busybox:1.36", "memory": 32, "entryPoint": ["sh", "-c"], "command": [SCRIPT]}
    ecs.register_task_definition(
        family=family, networkMode="awsvpc", requiresCompatibilities=["FARGATE"], cpu="256", memory="512",
        executionRoleArn="arn:aws:iam::123456789012:role/x", containerDefinitions=[{**container, "logConfiguration": log}],
    )


def run(family):
    network = {"awsvpcConfiguration": {"subnets": ["subnet-default-a"]}}
    answer = ecs.run_task(
        cluster=CLUSTER, taskDefinition=family, launchType="FARGATE", networkConfiguration=network,
        enableExecuteCommand=True,
    )
    return answer["tasks"][0]["taskArn"]


def task(arn):
    return ecs.describe_tasks(cluster=CLUSTER, tasks=[arn])["tasks"][0]


def messages(arn, group):
    stream = f"p/Web_1/{arn.split('/')[-1]}"
    try:
        found = logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True)
    except logs.exceptions.ResourceNotFoundException:
        return []
    return [event["message"] for event in found["events"]]


class Channel:
    """Session-manager's data channel, as little of it as a shell needs."""

    def __init__(self, granted):
        host, path = granted["streamUrl"].removeprefix("ws://").split("/", 1)
        name, port = host.split(":")
        self.socket = socket.create_connection((name, int(port)), timeout=240)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        assert b" 101 " in head, head
        self.sent, self.text, self.open, self.closed = 0, "", False, False
        self.frame(1, json.dumps({"MessageSchemaVersion": "1.0", "TokenValue": granted["tokenValue"]}).encode())

    def frame(self, kind, payload):
        mask = os.urandom(4)
        length = struct.pack(">BBH", 0x80 | kind, 0x80 | 126, len(payload))
        self.socket.sendall(length + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload)))

    def message(self, kind, payload_type, payload, sequence):
        half = uuid.uuid4().bytes
        head = struct.pack(">I32sIQqQ", 116, kind.ljust(32).encode(), 1, int(time.time() * 1000), sequence, 0)
        body = half + hashlib.sha256(payload).digest() + struct.pack(">II", payload_type, len(payload)) + payload
        self.frame(2, head + body)

    def send(self, payload_type, payload):
        self.message("input_stream_data", payload_type, payload, self.sent)
        self.sent += 1

    def exactly(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            assert more, "the channel ended"
            data += more
        return data

    def step(self):
        first, length = self.exactly(2)
        if length == 126:
            (length,) = struct.unpack(">H", self.exactly(2))
        data = self.exactly(length)
        if first & 15 != 2:
            return
        kind = data[4:36].decode().strip()
        (sequence,) = struct.unpack(">q", data[48:56])
        payload_type, _ = struct.unpack(">II", data[112:120])
        if kind == "channel_closed":
            self.closed = True
        if kind != "output_stream_data":
            return
        content = {"AcknowledgedMessageType": kind, "AcknowledgedMessageSequenceNumber": sequence}
        self.message("acknowledge", 0, json.dumps(content).encode(), 0)
        if payload_type == 5:
            self.send(6, b'{"ProcessedClientActions": [], "Errors": null}')
        elif payload_type == 7:
            self.open = True
        elif payload_type == 1:
            self.text += data[120:].decode(errors="replace")

    def until(self, wanted):
        while wanted not in self.text:
            self.step()


def main():
    ecs.create_cluster(clusterName=CLUSTER)
    define("logged", **{"awslogs-group": "/ecs/logged", "awslogs-create-group": "true"})
    arn = run("logged")
    patiently("lines in the group", lambda: sorted(messages(arn, "/ecs/logged")) == ["hello", "oops"])
    patiently("running", lambda: task(arn)["lastStatus"] == "RUNNING")

    granted = ecs.execute_command(cluster=CLUSTER, task=arn, interactive=True, command="sh")["session"]
    channel = Channel(granted)
    while not channel.open:
        channel.step()
    channel.send(3, b'{"cols": 101, "rows": 31}')
    channel.send(1, b"echo sum $((20+22))\r")
    channel.until("sum 42")
    channel.send(1, b"until stty size | grep '31 101'; do sleep 0.1; done; echo size $((1+1))\r")
    channel.until("size 2")
    channel.send(1, b"exit\r")
    while not channel.closed:
        channel.step()

    ecs.stop_task(cluster=CLUSTER, task=arn)
    patiently("the last line", lambda: messages(arn, "/ecs/logged")[2:] == ["bye"])

    define("lost", **{"awslogs-group": "/ecs/none"})
    lost = run("lost")
    patiently("stopped", lambda: task(lost)["lastStatus"] == "STOPPED")
    reason = task(lost)["stoppedReason"]
    assert reason.startswith("ResourceInitializationError: failed to validate logger args"), reason
    assert "The specified log group does not exist." in reason, reason

    config = botocore.config.Config(inject_host_prefix=False)
    tail = session.client("logs", endpoint_url="http://127.0.0.1:4566", config=config)
    group = "arn:aws:logs:us-east-1:123456789012:log-group:/ecs/logged"
    events = iter(tail.start_live_tail(logGroupIdentifiers=[group])["responseStream"])
    assert "sessionStart" in next(events)
    logs.create_log_stream(logGroupName="/ecs/logged", logStreamName="live")
    now = int(time.time() * 1000)
    logs.put_log_events(logGroupName="/ecs/logged", logStreamName="live", logEvents=[{"timestamp": now, "message": "tailed"}])
    # An update a second, also of nothing.
    updates = ([e["message"] for e in event["sessionUpdate"]["sessionResults"]] for event in events)
    seen = next(messages for messages in updates if messages)
    assert seen == ["tailed"], seen
    print("logs are content")


if __name__ == "__main__":
    main()
