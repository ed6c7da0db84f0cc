//! Lives of tasks as their pods show them.

use super::*;
use crate::names::{Place, Scope};
use crate::task::initial_status;

const ID: &str = "0123456789abcdef0123456789abcdef";

struct Life {
    spec: Value,
    status: Value,
    pod: Value,
    mode: NetworkMode,
    now: f64,
}

impl Life {
    /// A task with containers `web` (essential, with a health check) and `log` (not essential).
    fn new(mode: NetworkMode) -> Life {
        let place = Place::new("123456789012", "us-east-1");
        let scope = Scope { place: place.clone(), defaults: place };
        let definition = json!({"networkMode": mode.as_str(),
            "containerDefinitions": [{"name": "web", "image": "nginx", "cpu": 1}, {"name": "log", "image": "log"}]});
        let spec = json!({"desiredStatus": "RUNNING", "launchType": "FARGATE", "taskArn": "arn:task", "enableExecuteCommand": true,
            "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-a"]}}});
        let status = initial_status(&scope, "prod", ID, &spec, &definition);
        let note = r#"{"version":1,"containers":{"web":{},"log":{"essential":false}}}"#;
        let pod = json!({
            "metadata": {"annotations": {annotation::KEY: note}},
            "spec": {"containers": [
                {"name": "web", "readinessProbe": {}, "ports": [{"containerPort": 80, "hostPort": 32768, "protocol": "TCP"}]},
                {"name": "log"}]},
            "status": {"phase": "Pending"},
        });
        Life { spec, status, pod, mode, now: 100.0 }
    }

    fn raise_with(&mut self, pod: bool, lost: Option<&str>) -> &Value {
        self.now += 1.0;
        let seen = Seen {
            spec: &self.spec,
            status: &self.status,
            id: ID,
            mode: self.mode,
            pod: pod.then_some(&self.pod),
            made: true,
            lost_node: lost,
            now: self.now,
        };
        self.status = raise(&seen);
        &self.status
    }

    fn raise(&mut self) -> String {
        text(&self.raise_with(true, None)["lastStatus"]).to_string()
    }

    fn gone(&mut self) -> Value {
        self.raise_with(false, None).clone()
    }

    fn placed(&mut self) {
        self.pod["spec"]["nodeName"] = json!("node-1");
        self.pod["status"]["podIP"] = json!("10.1.2.3");
    }

    fn containers(&mut self, web: Value, log: Value) {
        let one = |name: &str, state: Value| {
            json!({"name": name, "state": state, "ready": false, "containerID": format!("gantry://{name}01"),
                "imageID": "docker.io/library/x@sha256:abc"})
        };
        self.pod["status"]["containerStatuses"] = json!([one("web", web), one("log", log)]);
    }
}

fn running() -> Value {
    json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
}

fn ended(code: i32, reason: &str, second: u32) -> Value {
    json!({"terminated": {"exitCode": code, "reason": reason, "startedAt": "2026-01-01T00:00:00Z",
        "finishedAt": format!("2026-01-01T00:00:{second:02}Z"), "message": "the message"}})
}

#[test]
fn an_awsvpc_task_from_its_interface_to_its_end() {
    let mut life = Life::new(NetworkMode::AwsVpc);
    assert_eq!(life.raise(), "PROVISIONING");
    life.placed();
    assert_eq!(life.raise(), "PENDING");
    let details = life.status["attachments"][0].clone();
    assert_eq!(details["status"], "ATTACHED");
    let detail =
        |name: &str| items(&details["details"]).iter().find(|d| d["name"] == name).unwrap()["value"].clone();
    assert_eq!((detail("subnetId"), detail("privateIPv4Address")), (json!("subnet-a"), json!("10.1.2.3")));
    assert_eq!(detail("privateDnsName"), "ip-10-1-2-3.ec2.internal");
    life.containers(running(), json!({"waiting": {}}));
    assert_eq!(life.raise(), "PENDING");
    life.containers(running(), running());
    life.spec["activating"] = json!(true);
    assert_eq!(life.raise(), "ACTIVATING");
    assert!(life.status["startedAt"].is_null());
    life.spec["activating"] = Value::Null;
    assert_eq!(life.raise(), "RUNNING");
    let version = life.status["version"].clone();
    let started = life.status["startedAt"].clone();
    life.raise();
    assert_eq!((&life.status["version"], &life.status["startedAt"]), (&version, &started));
    let web = life.status["containers"][0].clone();
    assert_eq!((&web["runtimeId"], &web["imageDigest"]), (&json!("web01"), &json!("sha256:abc")));
    assert_eq!(web["networkInterfaces"][0]["privateIpv4Address"], "10.1.2.3");
    assert_eq!(web["managedAgents"][0]["lastStatus"], "RUNNING");
    // The one that is not essential ends: nothing happens.
    life.containers(running(), ended(0, "Completed", 5));
    assert_eq!(life.raise(), "RUNNING");
    assert_eq!(life.status["containers"][1]["exitCode"], 0);
    life.containers(ended(3, "Error", 9), ended(0, "Completed", 5));
    life.pod["status"]["phase"] = json!("Failed");
    assert_eq!(life.raise(), "DEPROVISIONING");
    assert!(is_over(&life.pod));
    let status = life.gone();
    assert_eq!(status["lastStatus"], "STOPPED");
    assert_eq!(
        (&status["stopCode"], &status["containers"][0]["exitCode"]),
        (&json!("EssentialContainerExited"), &json!(3))
    );
    assert_eq!(status["stoppedReason"], "Essential container in task exited");
    assert_eq!(status["attachments"][0]["status"], "DELETED");
    let times: Vec<f64> = ["pullStartedAt", "startedAt", "stoppingAt", "executionStoppedAt", "stoppedAt"]
        .iter()
        .map(|t| status[*t].as_f64().unwrap())
        .collect();
    assert!(times.is_sorted(), "{times:?}");
    // What is stopped stays as it is.
    assert_eq!(life.gone(), status);
}

#[test]
fn an_essential_end_is_told_while_others_still_stop() {
    let mut life = Life::new(NetworkMode::Bridge);
    life.placed();
    life.containers(running(), running());
    assert_eq!(life.raise(), "RUNNING");
    assert_eq!(life.status["containers"][0]["networkBindings"][0]["hostPort"], 32768);
    assert!(life.status["attachments"].as_array().unwrap().is_empty());
    life.containers(ended(1, "Error", 1), running());
    assert_eq!(life.raise(), "STOPPING");
    life.containers(ended(1, "Error", 1), ended(143, "Error", 2));
    life.pod["status"]["phase"] = json!("Failed");
    assert_eq!(life.raise(), "STOPPING");
    assert_eq!(life.gone()["lastStatus"], "STOPPED");
}

#[test]
fn the_words_for_what_went_wrong() {
    let cases = [
        ("ErrImagePull", "TaskFailedToStart", "CannotPullContainerError: the message"),
        ("CreateContainerConfigError", "TaskFailedToStart", "ResourceInitializationError: the message"),
        ("StartError", "TaskFailedToStart", "CannotStartContainerError: the message"),
        ("OOMKilled", "EssentialContainerExited", "OutOfMemoryError: Container killed due to memory usage"),
    ];
    for (reason, code, words) in cases {
        let mut life = Life::new(NetworkMode::AwsVpc);
        life.placed();
        // The other one was stopped in the same second.
        life.containers(ended(137, reason, 4), ended(143, "Error", 4));
        life.pod["status"]["phase"] = json!("Failed");
        life.raise();
        let status = life.gone();
        assert_eq!((&status["stopCode"], &status["stoppedReason"]), (&json!(code), &json!(words)));
        let web = &status["containers"][0];
        assert_eq!(web["reason"], words);
        assert_eq!(web["exitCode"].is_null(), code == "TaskFailedToStart", "{web}");
    }
}

#[test]
fn a_stop_by_somebody_keeps_its_words() {
    let mut life = Life::new(NetworkMode::AwsVpc);
    life.placed();
    life.containers(running(), running());
    life.raise();
    life.spec["desiredStatus"] = json!("STOPPED");
    life.spec["stopCode"] = json!("UserInitiated");
    life.spec["stoppedReason"] = json!("lunch");
    assert_eq!(life.raise(), "STOPPING");
    life.containers(ended(137, "OOMKilled", 1), ended(0, "Completed", 1));
    life.pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    life.raise();
    let status = life.gone();
    assert_eq!((&status["stopCode"], &status["stoppedReason"]), (&json!("UserInitiated"), &json!("lunch")));
    // Before anything ran: no exit codes, but stopped all the same.
    let mut life = Life::new(NetworkMode::AwsVpc);
    life.raise();
    life.spec["desiredStatus"] = json!("STOPPED");
    let status = life.gone();
    assert_eq!(
        (&status["lastStatus"], &status["containers"][0]["lastStatus"]),
        (&json!("STOPPED"), &json!("STOPPED"))
    );
    assert!(status["containers"][0]["exitCode"].is_null());
}

#[test]
fn lost_nodes_and_health() {
    let mut life = Life::new(NetworkMode::Bridge);
    life.spec["launchType"] = json!("EC2");
    life.placed();
    life.containers(running(), running());
    life.pod["status"]["containerStatuses"][0]["ready"] = json!(true);
    life.raise();
    assert_eq!(
        (&life.status["healthStatus"], &life.status["containers"][1]["healthStatus"]),
        (&json!("HEALTHY"), &json!("UNKNOWN"))
    );
    life.pod["status"]["containerStatuses"][0]["ready"] = json!(false);
    life.pod["status"]["conditions"] =
        json!([{"type": annotation::HEALTH_CONDITION, "status": "False", "message": "web"}]);
    assert_eq!(life.raise(), "RUNNING");
    assert_eq!(life.status["healthStatus"], "UNHEALTHY");
    assert_eq!(life.raise_with(true, Some("node-1"))["lastStatus"], "STOPPING");
    let status = life.gone();
    assert_eq!(status["stoppedReason"], "Host EC2 (instance node-1) terminated.");
}

#[test]
fn nothing_is_said_before_the_pod_is_made() {
    let life = Life::new(NetworkMode::AwsVpc);
    let seen = Seen {
        spec: &life.spec,
        status: &life.status,
        id: ID,
        mode: life.mode,
        pod: None,
        made: false,
        lost_node: None,
        now: 1.0,
    };
    assert_eq!(raise(&seen), life.status);
}
