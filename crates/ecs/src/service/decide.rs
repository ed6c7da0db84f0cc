//! What to do for one service now. Pure: snapshot in, plan out.
//!
//! Level-triggered: what must not be forgotten is in `status` (deployments, failures in a row, events); what may be
//! forgotten is in [`Memory`] (which ends are counted, which tasks were healthy, when to try again).

use super::moves::{self, Board, Bounds, Moves, Place};
use super::rollout::{adopt, count, finish, number, tell, threshold, wanted};
use super::view::{Health, Seen};
use ecs_model::service::{LAST_COMPLETED, SERVICE_DEPLOYMENT, STOP_REQUEST};
use machinery::kinds::get::{int, set, text};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Tasks that are started in one go: others wait for the next look.
const START_MAX: usize = 50;
/// Failures of all wanted tasks in a row that are tried again at once.
const FREE_ROUNDS: u64 = 3;
/// The first pause after them, doubled each time, and the longest.
const PAUSE_MS: i64 = 10_000;
const PAUSE_MAX_MS: i64 = 900_000;
/// Pause after a placement that failed.
const PLACE_AGAIN_MS: i64 = 10_000;
/// Pause between two attempts at balance, which is also what one may take.
const BALANCE_MS: i64 = 300_000;

/// Everything a decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// The service's spec.
    pub spec: &'a Value,
    /// Its status so far; null for a new one.
    pub status: &'a Value,
    /// All its tasks, also those that are over.
    pub tasks: &'a [Seen],
    /// The cluster's instances.
    pub places: &'a [Place],
    /// Zones that its tasks can be in.
    pub zones: &'a BTreeSet<String>,
    /// What is remembered of earlier looks.
    pub memory: &'a Memory,
    /// Milliseconds since 1970.
    pub now_ms: i64,
}

/// What is remembered between looks; a new controller begins with none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// This is not the first look.
    pub looked: bool,
    /// Tasks that were healthy at some time.
    pub proven: BTreeSet<String>,
    /// Tasks whose end is counted.
    pub counted: BTreeSet<String>,
    /// The last failure.
    pub failed_ms: i64,
    /// Nothing was to be done.
    pub steady: bool,
    /// The last placement found no room.
    pub blocked_ms: Option<i64>,
    /// The last attempt at balance; `true`: it goes on.
    pub balance: Option<(i64, bool)>,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Start so many tasks of the primary; one each on those instances, where there are any.
    Start(usize, Vec<String>),
    /// Stop tasks: id and reason.
    Stop(Vec<(String, String)>),
    /// Change the service's spec back to that deployment (`{id, createdAt}`), for that reason.
    RollBack(Value),
    /// The service is INACTIVE from now on.
    Close,
    /// The user's wish to stop a service deployment is fulfilled.
    Heard,
}

/// Steps, and what is then known.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In order.
    pub acts: Vec<Act>,
    /// The status to write, but for what the steps add.
    pub status: Value,
    /// For the next look.
    pub memory: Memory,
    /// Look again after so many milliseconds.
    pub again_ms: Option<u64>,
}

/// One decision in the making.
struct Work<'a> {
    seen: Snapshot<'a>,
    now: f64,
    status: Value,
    all: Vec<Value>,
    memory: Memory,
    acts: Vec<Act>,
    again: Option<u64>,
}

/// Decides.
pub fn decide(snapshot: &Snapshot) -> Plan {
    let now = snapshot.now_ms as f64 / 1000.0;
    let (all, renewed) = adopt(snapshot.spec, snapshot.status, now);
    let mut work = Work {
        seen: *snapshot,
        now,
        status: if snapshot.status.is_object() { snapshot.status.clone() } else { json!({"events": []}) },
        all,
        memory: snapshot.memory.clone(),
        acts: Vec::new(),
        again: snapshot.tasks.iter().filter(|t| t.wanted).filter_map(|t| t.due_ms).min(),
    };
    if renewed {
        work.memory = Memory { failed_ms: 0, steady: false, blocked_ms: None, ..work.memory };
        work.open_record();
    }
    work.learn();
    let bounds = work.bounds();
    work.judge(bounds.want);
    work.requested();
    work.resume();
    work.move_tasks(bounds);
    work.conclude(bounds);
    work.plan(bounds)
}

impl Work<'_> {
    fn is_daemon(&self) -> bool {
        text(self.seen.spec, "/schedulingStrategy") == "DAEMON"
    }

    fn is_active(&self) -> bool {
        text(self.seen.spec, "/status") == "ACTIVE"
    }

    fn name(&self) -> &str {
        text(self.seen.spec, "/serviceName")
    }

    fn tell(&mut self, what: &str) {
        let message = format!("(service {}) {what}", self.name());
        tell(&mut self.status, message, self.now);
    }

    fn look_again(&mut self, ms: i64) {
        let ms = u64::try_from(ms).unwrap_or(0) + 1;
        self.again = Some(self.again.map_or(ms, |other| other.min(ms)));
    }

    fn bounds(&self) -> Bounds {
        let want = match (self.is_active(), self.is_daemon()) {
            (false, _) => 0,
            (true, true) => self.seen.places.iter().filter(|p| p.takes).count(),
            (true, false) => usize::try_from(int(self.seen.spec, "/desiredCount").unwrap_or(0)).unwrap_or(0),
        };
        let percent = |member: &str, default: usize| {
            let value = int(self.seen.spec, &format!("/deploymentConfiguration/{member}"));
            value.and_then(|v| usize::try_from(v).ok()).unwrap_or(default)
        };
        Bounds::new(want, percent("maximumPercent", 200), percent("minimumHealthyPercent", 100))
    }

    fn in_progress(&self) -> bool {
        self.all.first().is_some_and(|d| d["rolloutState"] == "IN_PROGRESS")
    }

    /// Learns from the tasks: who is healthy, whose end counts as a failure.
    fn learn(&mut self) {
        let keep = self.all.first().is_some_and(|_| {
            self.seen.spec["deploymentConfiguration"]["deploymentCircuitBreaker"]["resetOnHealthyTask"]
                == false
        });
        let mut failures: BTreeMap<String, u64> = BTreeMap::new();
        let here: BTreeSet<&str> = self.seen.tasks.iter().map(|t| t.id.as_str()).collect();
        self.memory.proven.retain(|id| here.contains(id.as_str()));
        self.memory.counted.retain(|id| here.contains(id.as_str()));
        for task in self.seen.tasks {
            if let Some(end) = &task.end {
                let new = self.memory.counted.insert(task.id.clone()) && self.memory.looked;
                let failed = end.unhealthy || (end.failed && !self.memory.proven.contains(&task.id));
                if new && failed {
                    *failures.entry(task.deployment.clone()).or_default() += 1;
                }
            }
        }
        let mut healed: BTreeSet<&str> = BTreeSet::new();
        for task in self.seen.tasks.iter().filter(|t| t.wanted && t.health == Health::Healthy) {
            if self.memory.proven.insert(task.id.clone()) {
                healed.insert(&task.deployment);
            }
        }
        self.memory.looked = true;
        for deployment in &mut self.all {
            let id = text(deployment, "/id").to_string();
            let before = int(deployment, "/failedTasks").unwrap_or(0);
            let more = failures.get(&id).copied().unwrap_or(0);
            let base = if healed.contains(id.as_str()) && !keep { 0 } else { before };
            let failed = base + i64::try_from(more).unwrap_or(0);
            if failed != before {
                set(deployment, "failedTasks", failed);
                set(deployment, "updatedAt", self.now);
            }
        }
        let primary = self.all.first().map(|d| text(d, "/id").to_string()).unwrap_or_default();
        if failures.contains_key(&primary) {
            self.memory.failed_ms = self.seen.now_ms;
        }
    }

    /// The circuit breaker.
    fn judge(&mut self, want: usize) {
        let Some(trips) = threshold(self.seen.spec, want).filter(|_| self.in_progress() && self.is_active())
        else {
            return;
        };
        let failed = self.all.first().and_then(|d| int(d, "/failedTasks")).unwrap_or(0);
        if text(&self.status[SERVICE_DEPLOYMENT], "/status") == "IN_PROGRESS" {
            let breaker = json!({"status": "MONITORING", "failureCount": failed, "threshold": trips});
            set(&mut self.status[SERVICE_DEPLOYMENT], "deploymentCircuitBreaker", breaker);
        }
        if u64::try_from(failed).unwrap_or(0) < trips {
            return;
        }
        set(&mut self.status[SERVICE_DEPLOYMENT]["deploymentCircuitBreaker"], "status", "TRIGGERED");
        self.fail("ECS deployment circuit breaker", "tasks failed to start.");
    }

    /// A user's StopServiceDeployment.
    fn requested(&mut self) {
        let asked = &self.seen.spec[STOP_REQUEST];
        if !asked.is_object() {
            return;
        }
        self.acts.push(Act::Heard);
        if text(asked, "/id") != text(&self.status[SERVICE_DEPLOYMENT], "/id") || !self.in_progress() {
            return;
        }
        let abort = text(asked, "/type") == "ABORT";
        self.fail_as("Service deployment stopped", "stopped by the user.", !abort);
        let now = self.now;
        let record = &mut self.status[SERVICE_DEPLOYMENT];
        set(record, "stoppedAt", now);
        if text(record, "/status") == "ROLLBACK_FAILED" {
            set(record, "status", "STOPPED");
        }
    }

    fn fail(&mut self, who: &str, what: &str) {
        let back = self.seen.spec["deploymentConfiguration"]["deploymentCircuitBreaker"]["rollback"] == true;
        self.fail_as(who, what, back);
    }

    /// The primary has failed; back to the last that was completed, where that is asked for and there is one.
    fn fail_as(&mut self, who: &str, what: &str, back: bool) {
        let id = wanted(self.seen.spec).to_string();
        self.tell(&format!("(deployment {id}) deployment failed: {what}"));
        let now = self.now;
        if let Some(primary) = self.all.first_mut() {
            finish(primary, "FAILED", format!("{who}: {what}"), now);
        }
        let last = self.status[LAST_COMPLETED].clone();
        let possible = back && !text(&last, "/id").is_empty() && text(&last, "/id") != id;
        let record = &mut self.status[SERVICE_DEPLOYMENT];
        set(record, "updatedAt", now);
        if !possible {
            let state = if back { "ROLLBACK_FAILED" } else { "STOPPED" };
            set(record, "status", state);
            set(record, "statusReason", format!("{who}: {what}"));
            set(record, "finishedAt", now);
            return;
        }
        let target = text(&last, "/id").to_string();
        let reason = format!("{who}: rolling back to deploymentId {target}.");
        let roll = json!({"reason": reason, "startedAt": now, "revision": number(&target)});
        machinery::patch::merge(
            record,
            &json!({"status": "ROLLBACK_IN_PROGRESS", "statusReason": reason, "rollback": roll}),
        );
        self.tell(&format!("rolling back to deployment {target}."));
        let to = json!({"id": target, "createdAt": last["createdAt"], "reason": reason});
        self.acts.push(Act::RollBack(to));
    }

    /// A roll-back that was told and not yet done (Gantry died in between) is done.
    fn resume(&mut self) {
        let record = &self.status[SERVICE_DEPLOYMENT];
        let back = text(record, "/rollback/revision");
        let last = &self.status[LAST_COMPLETED];
        let pending = text(record, "/status") == "ROLLBACK_IN_PROGRESS"
            && wanted(self.seen.spec) == text(record, "/id")
            && number(text(last, "/id")) == back;
        if pending && !self.acts.iter().any(|a| matches!(a, Act::RollBack(_))) {
            let to = json!({"id": last["id"], "createdAt": last["createdAt"], "reason": record["rollback"]["reason"]});
            self.acts.push(Act::RollBack(to));
        }
    }

    /// A service deployment begins; one that goes back is the failed one's.
    fn open_record(&mut self) {
        if !text(&self.seen.spec["deployment"], "/reason").is_empty() {
            return;
        }
        let id = wanted(self.seen.spec);
        let sources: Vec<&str> = self.all.iter().skip(1).map(|d| number(text(d, "/id"))).collect();
        let mut record = json!({"id": id, "target": number(id), "sources": sources, "status": "IN_PROGRESS",
            "createdAt": self.seen.spec["deployment"]["createdAt"], "startedAt": self.now, "updatedAt": self.now,
            "deploymentConfiguration": self.seen.spec["deploymentConfiguration"], "lifecycleStage": "SCALE_UP"});
        let alarms = &self.seen.spec["deploymentConfiguration"]["alarms"];
        if alarms.is_object() {
            let status = if alarms["enable"] == true { "MONITORING" } else { "DISABLED" };
            record["alarms"] =
                json!({"alarmNames": alarms["alarmNames"], "status": status, "triggeredAlarmNames": []});
        }
        if self.seen.spec["deploymentConfiguration"]["deploymentCircuitBreaker"]["enable"] != true {
            record["deploymentCircuitBreaker"] = json!({"status": "DISABLED"});
        }
        set(&mut self.status, SERVICE_DEPLOYMENT, record);
    }

    /// Milliseconds to wait before anything is started again after failures.
    fn pause(&self, want: usize) -> i64 {
        let failed = self.all.first().and_then(|d| int(d, "/failedTasks")).unwrap_or(0);
        let rounds = u64::try_from(failed).unwrap_or(0) / want.max(1) as u64;
        if rounds < FREE_ROUNDS {
            return 0;
        }
        let doubled = PAUSE_MS.saturating_mul(1 << (rounds - FREE_ROUNDS).min(20));
        (self.memory.failed_ms + doubled.min(PAUSE_MAX_MS) - self.seen.now_ms).max(0)
    }

    fn move_tasks(&mut self, bounds: Bounds) {
        let Some(primary) = self.all.first() else { return };
        let id = text(primary, "/id").to_string();
        let failed = text(primary, "/rolloutState") == "FAILED";
        let live: Vec<&Seen> = self.seen.tasks.iter().filter(|t| t.wanted).collect();
        let extra = self.balance(&live, bounds);
        let board = Board {
            tasks: &live,
            primary: &id,
            bounds,
            proven: &self.memory.proven,
            blocked: self.memory.blocked_ms.is_some(),
            failed,
            extra,
        };
        let daemon = self.is_daemon() && self.is_active();
        let Moves { start, mut start_on, stop } =
            if daemon { moves::daemon(&board, self.seen.places) } else { moves::replica(&board) };
        let wants = if daemon { start_on.len() } else { start };
        if !stop.is_empty() {
            self.acts.push(Act::Stop(stop));
        }
        if wants == 0 {
            return;
        }
        let pause = self.pause(bounds.want);
        let retry = self.memory.blocked_ms.map_or(0, |at| at + PLACE_AGAIN_MS - self.seen.now_ms);
        if pause > 0 || retry > 0 {
            self.look_again(pause.max(retry));
            if pause > 0 {
                self.complain();
            }
            return;
        }
        start_on.truncate(START_MAX);
        self.acts.push(Act::Start(wants.min(START_MAX), start_on));
    }

    /// Says once that tasks do not start.
    fn complain(&mut self) {
        let words = "is unable to consistently start tasks successfully. For more information, see the Troubleshooting \
                     section of the Amazon ECS Developer Guide.";
        let last = text(&self.status, "/events/0/message");
        if !last.ends_with(words) {
            self.tell(words);
        }
    }

    /// Is one more task wanted than asked for, so that one of a crowded zone can go?
    fn balance(&mut self, live: &[&Seen], bounds: Bounds) -> bool {
        let on = text(self.seen.spec, "/availabilityZoneRebalancing") == "ENABLED" && !self.is_daemon();
        let calm =
            on && self.is_active() && !self.in_progress() && self.all.len() == 1 && bounds.most > bounds.want;
        let well = live.iter().filter(|t| t.health == Health::Healthy).count();
        let began = self.memory.balance;
        let due = began.is_none_or(|(at, _)| self.seen.now_ms - at >= BALANCE_MS);
        if let Some((at, true)) = began {
            if calm && !due && well <= bounds.want && live.len() >= bounds.want {
                return true;
            }
            self.memory.balance = Some((at, false));
            if calm && well > bounds.want {
                self.tell(&format!("is AZ balanced with {} tasks.", bounds.want));
            }
            return false;
        }
        let whole = well == live.len() && well == bounds.want;
        let Some(counts) = moves::imbalance(live, self.seen.zones).filter(|_| calm && whole) else {
            return false;
        };
        if !due {
            let (at, _) = began.unwrap_or_default();
            self.look_again(at + BALANCE_MS - self.seen.now_ms);
            return false;
        }
        self.memory.balance = Some((self.seen.now_ms, true));
        let words: Vec<String> =
            counts.iter().map(|(zone, n)| format!("{n} tasks in Availability Zone {zone}")).collect();
        self.tell(&format!("is not AZ balanced with {}. AZ Rebalancing in progress.", words.join(", ")));
        true
    }

    /// What is over is over: old deployments without tasks go, a roll-out ends, a service closes.
    fn conclude(&mut self, bounds: Bounds) {
        let tasks = self.seen.tasks;
        let busy = |id: &str| {
            tasks.iter().any(|t| t.end.is_none() && t.deployment == id && (t.wanted || t.last == "RUNNING"))
        };
        let mut at = 0;
        self.all.retain(|d| {
            at += 1;
            at == 1 || busy(text(d, "/id"))
        });
        if !self.is_active() {
            self.all.retain(|d| busy(text(d, "/id")));
            if tasks.iter().all(|t| t.end.is_some()) && text(self.seen.spec, "/status") == "DRAINING" {
                self.acts.push(Act::Close);
            }
            return;
        }
        let Some(primary) = self.all.first().map(|d| text(d, "/id").to_string()) else { return };
        let live: Vec<&Seen> = tasks.iter().filter(|t| t.wanted).collect();
        let well = live.iter().filter(|t| t.deployment == primary && t.health == Health::Healthy).count();
        let still = self.acts.is_empty() && self.all.len() == 1;
        let steady = still && well == bounds.want && live.len() == bounds.want;
        if steady && self.in_progress() {
            self.complete(&primary);
        }
        let calm = "has reached a steady state.";
        if steady && !self.memory.steady {
            let told = text(&self.status, "/events/0/message").ends_with(calm);
            if !told {
                self.tell(calm);
            }
        }
        self.memory.steady = steady;
    }

    fn complete(&mut self, primary: &str) {
        let now = self.now;
        if let Some(first) = self.all.first_mut() {
            finish(first, "COMPLETED", format!("ECS deployment {primary} completed."), now);
            let last = json!({"id": first["id"], "createdAt": first["createdAt"]});
            set(&mut self.status, LAST_COMPLETED, last);
        }
        let record = &mut self.status[SERVICE_DEPLOYMENT];
        if record.is_object() {
            let back = text(record, "/status") == "ROLLBACK_IN_PROGRESS";
            let state = if back { "ROLLBACK_SUCCESSFUL" } else { "SUCCESSFUL" };
            if matches!(text(record, "/status"), "IN_PROGRESS" | "ROLLBACK_IN_PROGRESS") {
                machinery::patch::merge(
                    record,
                    &json!({"status": state, "finishedAt": now, "updatedAt": now,
                    "lifecycleStage": "CLEAN_UP"}),
                );
                if record["deploymentCircuitBreaker"]["status"] == "MONITORING" {
                    set(&mut record["deploymentCircuitBreaker"], "status", "MONITORING_COMPLETE");
                }
            }
        }
        self.tell(&format!("(deployment {primary}) deployment completed."));
    }

    fn plan(mut self, bounds: Bounds) -> Plan {
        let (tasks, now) = (self.seen.tasks, self.now);
        for (at, deployment) in self.all.iter_mut().enumerate() {
            count(deployment, tasks, (at == 0).then_some(bounds.want), now);
        }
        let running = tasks.iter().filter(|t| t.last == "RUNNING").count();
        let pending = tasks.iter().filter(|t| t.wanted && t.last != "RUNNING").count();
        set(&mut self.status, "runningCount", running);
        set(&mut self.status, "pendingCount", pending);
        if self.is_daemon() || !self.is_active() {
            set(&mut self.status, "desiredCount", bounds.want);
        }
        set(&mut self.status, "deployments", self.all);
        Plan { acts: self.acts, status: self.status, memory: self.memory, again_ms: self.again }
    }
}

/// The closest failure of a placement, as the event words it. `failures` as RunTask answers them.
pub fn unplaced(failures: &[Value]) -> String {
    let words = |reason: &str| match reason {
        "RESOURCE:MEMORY" => "has insufficient memory available".to_string(),
        "RESOURCE:CPU" => "has insufficient CPU units available".to_string(),
        "RESOURCE:PORTS" => "is already using a port required by your task".to_string(),
        "ATTRIBUTE" => "is missing an attribute required by your task".to_string(),
        "AGENT" => "has an agent that is disconnected".to_string(),
        other => format!("encountered error \"{other}\""),
    };
    let guide = "For more information, see the Troubleshooting section of the Amazon ECS Developer Guide.";
    let start = "was unable to place a task because no container instance met all of its requirements.";
    let near = failures.iter().find(|f| text(f, "/arn").contains(":container-instance/"));
    match near.or(failures.first()) {
        Some(failure) if near.is_some() => {
            let id = text(failure, "/arn").rsplit('/').next().unwrap_or_default();
            let why = words(text(failure, "/reason"));
            format!("{start} The closest matching (container-instance {id}) {why}. {guide}")
        }
        Some(failure) => format!(
            "was unable to place a task. Reason: {}. {guide}",
            text(failure, "/reason").trim_end_matches('.')
        ),
        None => format!("{start} Reason: No Container Instances were found in your cluster. {guide}"),
    }
}

/// `(task a) (task b)`.
pub fn named<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    ids.map(|id| format!("(task {id})")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
