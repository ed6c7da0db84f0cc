//! The decisions of the service scheduler, one situation a test.

use super::*;
use crate::service::view::End;
use machinery::kinds::get::list;

/// A service, its tasks, and time: plays what is decided.
struct World {
    spec: Value,
    status: Value,
    tasks: Vec<Seen>,
    places: Vec<Place>,
    zones: BTreeSet<String>,
    memory: Memory,
    now_ms: i64,
    next: usize,
    /// What becomes of new tasks: healthy, or ended by themselves.
    good: bool,
    seen: Vec<Act>,
}

fn deployment(n: u32) -> Value {
    json!({"id": format!("ecs-svc/{n}"), "createdAt": f64::from(n)})
}

fn world(want: usize, more: Value) -> World {
    let mut spec = json!({
        "serviceName": "web", "status": "ACTIVE", "desiredCount": want, "taskDefinition": "t:1",
        "deploymentConfiguration": {"maximumPercent": 200, "minimumHealthyPercent": 100}, "deployment": deployment(1),
    });
    machinery::patch::merge(&mut spec, &more);
    World {
        spec,
        status: Value::Null,
        tasks: Vec::new(),
        places: Vec::new(),
        zones: BTreeSet::new(),
        memory: Memory::default(),
        now_ms: 1_000_000,
        next: 0,
        good: true,
        seen: Vec::new(),
    }
}

impl World {
    /// One look, and what follows from it.
    fn look(&mut self) -> Plan {
        let plan = decide(&Snapshot {
            spec: &self.spec,
            status: &self.status,
            tasks: &self.tasks,
            places: &self.places,
            zones: &self.zones,
            memory: &self.memory,
            now_ms: self.now_ms,
        });
        self.status = plan.status.clone();
        self.memory = plan.memory.clone();
        for act in &plan.acts {
            self.play(act);
        }
        self.seen.extend(plan.acts.clone());
        plan
    }

    fn play(&mut self, act: &Act) {
        match act {
            Act::Start(count, on) => {
                for i in 0..*count {
                    self.next += 1;
                    let id = format!("{}", self.next);
                    let zone = ["a", "b"][self.next % 2].to_string();
                    self.tasks.push(Seen {
                        id,
                        deployment: wanted(&self.spec).to_string(),
                        last: "PENDING".into(),
                        wanted: true,
                        health: Health::Starting,
                        due_ms: None,
                        zone,
                        provider: String::new(),
                        instance: on.get(i).cloned().unwrap_or_default(),
                        leaving: false,
                        protected: false,
                        created_ms: self.now_ms,
                        end: None,
                    });
                }
            }
            Act::Stop(all) => {
                for (id, why) in all {
                    let task = self.tasks.iter_mut().find(|t| t.id == *id).unwrap();
                    task.wanted = false;
                    task.last = "STOPPED".into();
                    task.end = Some(End { failed: false, unhealthy: why.starts_with("Task failed") });
                }
            }
            Act::RollBack(to) => {
                self.spec["deployment"] = to.clone();
                self.spec["taskDefinition"] = json!("t:1");
            }
            Act::Close => self.spec["status"] = json!("INACTIVE"),
            Act::Heard => drop(self.spec.as_object_mut().unwrap().remove(STOP_REQUEST)),
        }
    }

    /// Tasks get on, and then a look: until nothing happens any more.
    fn run(&mut self) {
        for _ in 0..400 {
            let before = (self.status.clone(), self.tasks.clone(), self.spec.clone());
            for task in self.tasks.iter_mut().filter(|t| t.wanted && t.health == Health::Starting) {
                if self.good || task.deployment == "ecs-svc/1" {
                    (task.last, task.health) = ("RUNNING".into(), Health::Healthy);
                } else {
                    (task.last, task.wanted) = ("STOPPED".into(), false);
                    task.end = Some(End { failed: true, unhealthy: false });
                }
            }
            self.now_ms += 1000;
            self.look();
            if before == (self.status.clone(), self.tasks.clone(), self.spec.clone()) {
                return;
            }
        }
    }

    fn update(&mut self, n: u32) {
        self.spec["deployment"] = deployment(n);
        self.spec["taskDefinition"] = json!(format!("t:{n}"));
    }

    fn live(&self) -> Vec<&str> {
        self.tasks.iter().filter(|t| t.wanted).map(|t| t.deployment.as_str()).collect()
    }

    fn events(&self) -> Vec<&str> {
        list(&self.status, "/events").iter().rev().map(|e| text(e, "/message")).collect()
    }

    fn rollouts(&self) -> Vec<(&str, &str, &str)> {
        let all = list(&self.status, "/deployments").iter();
        all.map(|d| (text(d, "/id"), text(d, "/status"), text(d, "/rolloutState"))).collect()
    }
}

#[test]
fn a_service_comes_up_rolls_scales_and_ends() {
    let mut world = world(2, json!({}));
    world.run();
    assert_eq!(world.live(), ["ecs-svc/1"; 2]);
    assert_eq!(world.rollouts(), [("ecs-svc/1", "PRIMARY", "COMPLETED")]);
    assert_eq!(
        world.events(),
        [
            "(service web) (deployment ecs-svc/1) deployment completed.",
            "(service web) has reached a steady state."
        ]
    );
    assert_eq!((&world.status["runningCount"], &world.status["pendingCount"]), (&json!(2), &json!(0)));
    assert_eq!(world.status[SERVICE_DEPLOYMENT]["status"], "SUCCESSFUL");
    world.update(2);
    let first = world.look();
    assert_eq!(first.acts, [Act::Start(2, vec![])]);
    assert_eq!(
        world.rollouts(),
        [("ecs-svc/2", "PRIMARY", "IN_PROGRESS"), ("ecs-svc/1", "ACTIVE", "COMPLETED")]
    );
    world.run();
    assert_eq!(world.live(), ["ecs-svc/2"; 2]);
    assert_eq!(world.rollouts(), [("ecs-svc/2", "PRIMARY", "COMPLETED")]);
    world.spec["desiredCount"] = json!(1);
    world.run();
    assert_eq!((world.live().len(), world.rollouts()[0].2), (1, "COMPLETED"));
    let steady = |w: &World| w.events().iter().filter(|e| e.ends_with("steady state.")).count();
    // (What is started and stopped is told by the shell; here nothing stands between two steady states.)
    assert_eq!(steady(&world), 2);
    world.spec["status"] = json!("DRAINING");
    world.run();
    assert_eq!((world.live().len(), &world.spec["status"]), (0, &json!("INACTIVE")));
    assert_eq!(world.status["deployments"], json!([]));
}

#[test]
fn the_circuit_breaker_rolls_back_to_what_was_completed() {
    let breaker =
        json!({"deploymentConfiguration": {"deploymentCircuitBreaker": {"enable": true, "rollback": true}}});
    let mut world = world(2, breaker);
    world.run();
    (world.good, world.seen) = (false, Vec::new());
    world.update(2);
    world.run();
    let back = world.seen.iter().filter(|a| matches!(a, Act::RollBack(_))).count();
    assert_eq!((back, world.live()), (1, vec!["ecs-svc/1"; 2]));
    assert_eq!(world.rollouts(), [("ecs-svc/1", "PRIMARY", "COMPLETED")]);
    for words in [
        "(service web) (deployment ecs-svc/2) deployment failed: tasks failed to start.",
        "(service web) rolling back to deployment ecs-svc/1.",
        "(service web) (deployment ecs-svc/1) deployment completed.",
    ] {
        assert!(world.events().contains(&words), "{:?}", world.events());
    }
    let record = &world.status[SERVICE_DEPLOYMENT];
    assert_eq!((&record["id"], &record["status"]), (&json!("ecs-svc/2"), &json!("ROLLBACK_SUCCESSFUL")));
    assert_eq!(record["deploymentCircuitBreaker"]["status"], "TRIGGERED");
    assert!(world.seen.iter().filter(|a| matches!(a, Act::Start(..))).count() <= 2, "three failures suffice");
}

#[test]
fn a_first_deployment_that_fails_stays_failed() {
    let breaker = json!({"deploymentConfiguration": {"deploymentCircuitBreaker": {"enable": true, "rollback": true}}, "deployment": deployment(5)});
    let mut world = world(1, breaker);
    world.good = false;
    world.run();
    assert_eq!(world.rollouts(), [("ecs-svc/5", "PRIMARY", "FAILED")]);
    assert_eq!((world.live().len(), &world.status["deployments"][0]["failedTasks"]), (0, &json!(3)));
    let reason = text(&world.status, "/deployments/0/rolloutStateReason");
    assert_eq!(reason, "ECS deployment circuit breaker: tasks failed to start.");
    assert!(world.look().acts.is_empty());
}

#[test]
fn a_rollback_that_was_cut_short_is_taken_up() {
    let breaker =
        json!({"deploymentConfiguration": {"deploymentCircuitBreaker": {"enable": true, "rollback": true}}});
    let mut world = world(1, breaker);
    world.run();
    world.good = false;
    world.update(2);
    let forgotten = loop {
        let spec = world.spec.clone();
        world.now_ms += 1000;
        for task in world.tasks.iter_mut().filter(|t| t.deployment == "ecs-svc/2" && t.wanted) {
            (task.wanted, task.end) = (false, Some(End { failed: true, unhealthy: false }));
        }
        if world.look().acts.iter().any(|a| matches!(a, Act::RollBack(_))) {
            break spec;
        }
    };
    // Gantry dies between the two writes.
    world.spec = forgotten;
    world.memory = Memory::default();
    assert!(world.look().acts.iter().any(|a| matches!(a, Act::RollBack(_))));
    world.run();
    assert_eq!(world.rollouts(), [("ecs-svc/1", "PRIMARY", "COMPLETED")]);
}

#[test]
fn tasks_that_do_not_start_are_tried_less_and_less() {
    let mut world = world(1, json!({"deployment": deployment(5)}));
    world.good = false;
    let mut starts = Vec::new();
    let begin = world.now_ms;
    while world.now_ms - begin < 3_600_000 {
        for task in world.tasks.iter_mut().filter(|t| t.wanted) {
            (task.wanted, task.last) = (false, "STOPPED".into());
            task.end = Some(End { failed: true, unhealthy: false });
        }
        world.now_ms += 1000;
        let plan = world.look();
        if plan.acts.iter().any(|a| matches!(a, Act::Start(..))) {
            starts.push((world.now_ms - begin) / 1000);
        } else {
            assert!(plan.again_ms.is_some(), "a pause has an end");
        }
    }
    assert!(starts[..3] == [1, 2, 3] && (8..14).contains(&starts.len()), "{starts:?}");
    let gaps: Vec<i64> = starts.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(gaps[2..].windows(2).all(|g| g[0] <= g[1]) && gaps.iter().all(|g| *g <= 902), "{gaps:?}");
    let complaints =
        world.events().iter().filter(|e| e.contains("unable to consistently start tasks")).count();
    assert_eq!(complaints, 1);
    // A task that gets healthy ends the pauses.
    world.good = true;
    world.now_ms += 1_000_000;
    world.run();
    world.run();
    assert_eq!((world.live().len(), &world.status["deployments"][0]["failedTasks"]), (1, &json!(0)));
}

#[test]
fn a_user_may_stop_a_deployment() {
    for (kind, status) in [("ROLLBACK", "ROLLBACK_SUCCESSFUL"), ("ABORT", "STOPPED")] {
        let mut world = world(2, json!({}));
        world.run();
        world.update(2);
        world.look();
        world.spec[STOP_REQUEST] = json!({"id": "ecs-svc/2", "type": kind});
        world.run();
        assert_eq!(world.status[SERVICE_DEPLOYMENT]["status"], status);
        assert!(world.spec.get(STOP_REQUEST).is_none());
        let left = world.live().contains(&"ecs-svc/2");
        assert_eq!((left, world.live().contains(&"ecs-svc/1")), (kind == "ABORT", true));
    }
}

#[test]
fn what_happened_before_a_restart_is_not_counted_twice() {
    let mut world = world(1, json!({"deployment": deployment(5)}));
    world.good = false;
    world.run_steps(2);
    let failed = world.status["deployments"][0]["failedTasks"].clone();
    world.memory = Memory::default();
    world.look();
    assert_eq!(world.status["deployments"][0]["failedTasks"], failed);
}

impl World {
    fn run_steps(&mut self, n: usize) {
        for _ in 0..n {
            self.look();
            for task in self.tasks.iter_mut().filter(|t| t.wanted) {
                (task.wanted, task.last) = (false, "STOPPED".into());
                task.end = Some(End { failed: true, unhealthy: false });
            }
        }
        self.look();
    }
}

#[test]
fn an_uneven_spread_is_evened_out_one_at_a_time() {
    let mut world = world(3, json!({"availabilityZoneRebalancing": "ENABLED"}));
    world.zones = ["a", "b"].map(String::from).into();
    world.run();
    world.tasks.iter_mut().for_each(|t| t.zone = "a".into());
    world.next = 4;
    world.now_ms += 1;
    world.run();
    let mut zones: Vec<&str> = world.tasks.iter().filter(|t| t.wanted).map(|t| t.zone.as_str()).collect();
    zones.sort_unstable();
    assert_eq!(zones, ["a", "a", "b"], "{:?}", world.events());
    assert!(world.events().iter().any(|e| e.ends_with("AZ Rebalancing in progress.")));
}

#[test]
fn daemons_count_instances() {
    let mut world = world(
        0,
        json!({"schedulingStrategy": "DAEMON",
        "deploymentConfiguration": {"maximumPercent": 100, "minimumHealthyPercent": 0}}),
    );
    let place = |arn: &str| Place { arn: arn.into(), zone: "a".into(), takes: true, active: true };
    world.places = vec![place("i1"), place("i2")];
    world.run();
    assert_eq!((world.live().len(), &world.status["desiredCount"]), (2, &json!(2)));
    world.places.pop();
    world.run();
    assert_eq!((world.live().len(), world.rollouts()[0].2), (1, "COMPLETED"));
    world.update(2);
    world.run();
    assert_eq!(world.live(), ["ecs-svc/2"]);
}

#[test]
fn events_of_placement_are_worded_as_users_know_them() {
    let near = unplaced(&[
        json!({"arn": "arn:aws:ecs:r:1:container-instance/c/0a", "reason": "RESOURCE:MEMORY"}),
        json!({"arn": "arn:c", "reason": "x"}),
    ]);
    assert_eq!(
        near,
        "was unable to place a task because no container instance met all of its requirements. The closest matching \
         (container-instance 0a) has insufficient memory available. For more information, see the Troubleshooting \
         section of the Amazon ECS Developer Guide."
    );
    assert!(unplaced(&[]).contains("Reason: No Container Instances were found in your cluster."));
    let none =
        unplaced(&[json!({"arn": "arn:c", "reason": "No Container Instances were found in your cluster."})]);
    assert!(none.contains("Reason: No Container Instances were found in your cluster."), "{none}");
    assert_eq!(named(["1", "2"].into_iter()), "(task 1) (task 2)");
}
