"""Load balancers, networks and Cloud Map through boto3, on the instance in whose network namespace this runs."""

import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

import boto3
from botocore.config import Config

NODE = "10.99.0.1"
PATIENCE = 240
session = boto3.session.Session("testing", "testing", region_name="us-east-1")


def aws(service):
    # An address takes no host prefix such as `data-`.
    config = Config(inject_host_prefix=False)
    return session.client(service, endpoint_url="http://127.0.0.1:4566", config=config)


ecs, ec2, elb, cloudmap = aws("ecs"), aws("ec2"), aws("elbv2"), aws("servicediscovery")


def until(what, value, wanted):
    deadline = time.monotonic() + PATIENCE
    while True:
        found = value()
        if wanted(found):
            return found
        assert time.monotonic() < deadline, f"{what}: {found}"
        time.sleep(0.05)


def get(port, path="/", host=None, at=NODE):
    headers = {"Host": host} if host else {}
    request = urllib.request.Request(f"http://{at}:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}".strip()
    except OSError as error:
        return str(error)


def run(family, script, subnets):
    container = {"name": "c", "image": "busybox:1.36", "entryPoint": ["sh", "-c"], "command": [script]}
    ecs.register_task_definition(
        family=family,
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="256",
        memory="512",
        containerDefinitions=[container],
    )
    network = {"awsvpcConfiguration": {"subnets": subnets, "securityGroups": ["sg-default"]}}
    made = ecs.run_task(cluster="prod", taskDefinition=family, launchType="FARGATE", networkConfiguration=network)
    assert not made["failures"], made
    return made["tasks"][0]["taskArn"]


def task(arn):
    return ecs.describe_tasks(cluster="prod", tasks=[arn])["tasks"][0]


def inside(arn, script):
    """A shell's exit code in a task."""
    words = ["kubectl", "exec", "-n", "ecs-prod", arn.split("/")[-1], "--", "sh", "-c", script]
    return subprocess.run(words, capture_output=True, timeout=PATIENCE).returncode


def running(arn):
    found = until("the task runs", lambda: task(arn), lambda t: t["lastStatus"] in ("RUNNING", "STOPPED"))
    assert found["lastStatus"] == "RUNNING", found
    return found["containers"][0]["networkInterfaces"][0]["privateIpv4Address"]


def states(group):
    told = elb.describe_target_health(TargetGroupArn=group)["TargetHealthDescriptions"]
    return {d["Target"]["Id"]: d["TargetHealth"]["State"] for d in told}


def balancer(name, subnets):
    made = elb.create_load_balancer(Name=name, Subnets=subnets)["LoadBalancers"][0]
    waiter = elb.get_waiter("load_balancer_available")
    waiter.wait(LoadBalancerArns=[made["LoadBalancerArn"]], WaiterConfig={"Delay": 1})
    return made


def state(name):
    found = elb.describe_load_balancers(Names=[name])["LoadBalancers"][0]["State"]
    return found["Code"], found.get("Reason", "")


def certificate(name):
    """A TLS Secret of that name, good for `<name>.example`; its ARN and the certificate."""
    with tempfile.TemporaryDirectory() as folder:
        key, chain = f"{folder}/key", f"{folder}/chain"
        make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2".split()
        names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}.example"]
        subprocess.run([*make, *names, "-keyout", key, "-out", chain], check=True, capture_output=True)
        secret = ["kubectl", "create", "secret", "tls", name, "-n", "aws", f"--cert={chain}", f"--key={key}"]
        subprocess.run(secret, check=True, capture_output=True, timeout=PATIENCE)
        with open(chain, encoding="ascii") as file:
            return f"arn:aws:acm:us-east-1:123456789012:certificate/{name}", file.read()


def secure(balancer, action):
    """An HTTPS listener shows each client the certificate of the name it asks for."""
    (one, _), (two, chain) = certificate("one"), certificate("two")
    listener = elb.create_listener(
        LoadBalancerArn=balancer,
        Protocol="HTTPS",
        Port=8443,
        Certificates=[{"CertificateArn": one}],
        DefaultActions=action,
    )["Listeners"][0]["ListenerArn"]
    elb.add_listener_certificates(ListenerArn=listener, Certificates=[{"CertificateArn": two}])
    trust = ssl.create_default_context(cadata=chain)

    def said():
        try:
            with socket.create_connection((NODE, 8443), timeout=PATIENCE) as raw:
                with trust.wrap_socket(raw, server_hostname="two.example") as stream:
                    stream.sendall(b"GET / HTTP/1.1\r\nHost: two.example\r\nConnection: close\r\n\r\n")
                    return b"".join(iter(lambda: stream.recv(4096), b""))
        except OSError as error:
            return str(error).encode()

    until("the second certificate is shown", said, lambda s: s.endswith(b"other"))


def main():
    ecs.create_cluster(clusterName="prod")
    subnets = [s["SubnetId"] for s in ec2.describe_subnets()["Subnets"]]
    serve = (
        "mkdir -p /www/cgi-bin; cd /www; echo ok > health; hostname -i > index.html;"
        " printf '#!/bin/sh\\ntouch /asked; until [ -e /go ]; do sleep 0.1; done; echo; echo slow\\n' > cgi-bin/slow; chmod +x cgi-bin/slow;"
        " trap exit TERM; httpd -f -p 8080 -h /www & wait"
    )
    tasks = [run("web", serve, subnets) for _ in range(2)]
    ips = [running(arn) for arn in tasks]

    # A network interface a task, in the default network.
    interfaces = ec2.describe_network_interfaces(Filters=[{"Name": "vpc-id", "Values": ["vpc-default"]}])
    assert {i["PrivateIpAddress"] for i in interfaces["NetworkInterfaces"]} == set(ips), interfaces

    made = balancer("front", subnets)
    group = elb.create_target_group(
        Name="web",
        Protocol="HTTP",
        Port=8080,
        TargetType="ip",
        VpcId="vpc-default",
        HealthCheckPath="/health",
        HealthCheckIntervalSeconds=5,
        HealthCheckTimeoutSeconds=4,
        UnhealthyThresholdCount=3,
    )["TargetGroups"][0]["TargetGroupArn"]
    elb.register_targets(TargetGroupArn=group, Targets=[{"Id": ip} for ip in ips])
    assert set(states(group).values()) == {"unused"}
    forward = [{"Type": "forward", "TargetGroupArn": group}]
    listener = elb.create_listener(
        LoadBalancerArn=made["LoadBalancerArn"], Protocol="HTTP", Port=8000, DefaultActions=forward
    )["Listeners"][0]["ListenerArn"]
    elb.get_waiter("target_in_service").wait(TargetGroupArn=group, WaiterConfig={"Delay": 1})
    until("requests are spread", lambda: {get(8000) for _ in range(10)}, lambda said: said == set(ips))

    # Rules, in the order of their priorities.
    fixed = {"StatusCode": "418", "ContentType": "text/plain", "MessageBody": "teapot"}
    elb.create_rule(
        ListenerArn=listener,
        Priority=20,
        Conditions=[{"Field": "host-header", "Values": ["tea.*"]}],
        Actions=[{"Type": "fixed-response", "FixedResponseConfig": fixed}],
    )
    until("the rule holds", lambda: get(8000, host="tea.example"), lambda said: said == "418 teapot")

    # A target that leaves answers what it was asked, and is gone as soon as it is idle.
    said = []
    asking = threading.Thread(target=lambda: said.append(get(8000, "/cgi-bin/slow")))
    elb.deregister_targets(TargetGroupArn=group, Targets=[{"Id": ips[1]}])
    until("one target", lambda: states(group), lambda s: ips[1] not in s)
    until("one answers", lambda: {get(8000) for _ in range(6)}, lambda said: said == {ips[0]})
    asking.start()
    until("it was asked", lambda: inside(tasks[0], "test -e /asked"), lambda code: code == 0)
    elb.deregister_targets(TargetGroupArn=group, Targets=[{"Id": ips[0]}])
    until("it drains", lambda: states(group), lambda s: s.get(ips[0]) == "draining")
    assert inside(tasks[0], "touch /go") == 0
    asking.join()
    assert said == ["slow"], said
    until("nobody is left", lambda: states(group), lambda s: not s)
    until("no target, no answer", lambda: get(8000), lambda said: said.startswith("503"))
    elb.register_targets(TargetGroupArn=group, Targets=[{"Id": ip} for ip in ips])
    until("both are back", lambda: states(group), lambda s: list(s.values()) == ["healthy"] * 2)

    # A target that dies is found out.
    ecs.stop_task(cluster="prod", task=tasks[1])
    until("one is sick", lambda: states(group), lambda s: sorted(s.values()) == ["healthy", "unhealthy"])
    until("the other answers", lambda: {get(8000) for _ in range(6)}, lambda said: said == {ips[0]})

    # Two load balancers have the same port, each at its own address; the older one has the node's too.
    other = balancer("other", subnets)
    action = [{"Type": "fixed-response", "FixedResponseConfig": {"StatusCode": "200", "MessageBody": "other"}}]
    elb.create_listener(
        LoadBalancerArn=other["LoadBalancerArn"], Protocol="HTTP", Port=8000, DefaultActions=action
    )
    secure(other["LoadBalancerArn"], action)
    own = {b["LoadBalancerName"]: b["AvailabilityZones"][0]["LoadBalancerAddresses"][0]["IpAddress"]
           for b in elb.describe_load_balancers()["LoadBalancers"]}
    addresses = NODE, own["front"], own["other"]
    until("each at its own", lambda: [get(8000, at=a) for a in addresses], lambda said: said == [ips[0], ips[0], "other"])
    until("the other's state", lambda: state("other"), lambda told: told == ("active", ""))

    # Names: private zones and load balancers, in tasks.
    def done(operation):
        return cloudmap.get_operation(OperationId=operation["OperationId"])["Operation"]

    made_zone = done(cloudmap.create_private_dns_namespace(Name="prod.local", Vpc="vpc-default"))
    service = cloudmap.create_service(
        Name="web",
        NamespaceId=made_zone["Targets"]["NAMESPACE"],
        DnsConfig={"DnsRecords": [{"Type": "A", "TTL": 10}, {"Type": "SRV", "TTL": 10}]},
        HealthCheckCustomConfig={"FailureThreshold": 1},
    )["Service"]["Id"]
    attributes = {"AWS_INSTANCE_IPV4": ips[0], "AWS_INSTANCE_PORT": "8080"}
    assert done(cloudmap.register_instance(ServiceId=service, InstanceId="t1", Attributes=attributes))["Status"] == "SUCCESS"
    found = cloudmap.discover_instances(NamespaceName="prod.local", ServiceName="web")["Instances"]
    assert [i["Attributes"]["AWS_INSTANCE_IPV4"] for i in found] == [ips[0]], found
    script = (
        f"meet() {{ for i in $(seq 300); do get $1 $2 | grep {ips[0]} && return; sleep 0.1; done; exit 1; }};"
        " for i in $(seq 600); do nslookup -type=srv web.prod.local | grep 8080 && break; sleep 0.1; done;"
        f" meet web.prod.local 8080; meet t1.web.prod.local 8080; meet {made['DNSName']} 8000;"
        " ! nslookup nope.prod.local"
    )
    asks = run("ask", script, subnets)
    ended = until("the asking task ends", lambda: task(asks), lambda t: t["lastStatus"] == "STOPPED")
    assert ended["containers"][0].get("exitCode") == 0, ended

    elb.delete_load_balancer(LoadBalancerArn=made["LoadBalancerArn"])
    until("the node's port is the other's", lambda: get(8000), lambda said: said == "other")
    print("load balancers are content")


main()
