//! What an event sets off: rules are matched at once, deliveries wait in a bounded queue and are tried again.
//!
//! Invariants: publishing never waits; a queue that is full drops the newest and says so; events come at least once
//! while this process lives, and are gone with it. Rules come from a cache that starts with [`Engine::run`].

use super::deliver::{Deliverer, Delivery};
use super::pattern::Pattern;
use super::schedule::Schedule;
use crate::service::{Service, Shared};
use crate::services::kept::text;
use crate::services::logs::Sink;
use client::cache::Cache;
use client::{ApiClient, ListOptions};
use ecs_model::names::{AWS_NAMESPACE, Arn};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_schema::gvr::EVENT_RULES;
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc;

/// Deliveries that wait for their turn: each holds a reference to its event.
const QUEUE_MAX: usize = 10_000;
/// Deliveries under way, those that wait for another try included.
const UNDER_WAY_MAX: usize = 1_000;

/// An event on a bus.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// 12 digits.
    pub account: String,
    /// Region.
    pub region: String,
    /// The bus's name.
    pub bus: String,
    /// As targets see it.
    pub document: Value,
}

/// A rule, read once.
pub(super) struct Rule {
    pub(super) spec: Value,
    pub(super) account: String,
    pub(super) region: String,
    pattern: Option<Pattern>,
    pub(super) schedule: Option<Schedule>,
}

impl k8s_schema::View for Rule {
    fn decode(raw: &[u8]) -> Result<Self, serde_json::Error> {
        let spec = serde_json::from_slice::<Value>(raw)?["spec"].take();
        let arn = Arn::parse(text(&spec, "Arn")).map(|a| (a.account.to_string(), a.region.to_string()));
        let (account, region) = arn.unwrap_or_default();
        let pattern = Pattern::parse(text(&spec, "EventPattern")).ok();
        let schedule = Schedule::parse(text(&spec, "ScheduleExpression"));
        Ok(Rule { spec, account, region, pattern, schedule })
    }
}

impl Rule {
    pub(super) fn is_enabled(&self) -> bool {
        text(&self.spec, "State") != "DISABLED"
    }

    fn wants(&self, event: &Event) -> bool {
        let here = (&*self.account, &*self.region, text(&self.spec, "EventBusName"))
            == (&*event.account, &*event.region, &*event.bus);
        here && self.is_enabled() && self.pattern.as_ref().is_some_and(|p| p.matches(&event.document))
    }
}

/// Matches and delivers.
pub struct Engine {
    client: ApiClient,
    rules: OnceLock<Arc<Cache>>,
    send: mpsc::Sender<Delivery>,
    receive: Mutex<Option<mpsc::Receiver<Delivery>>>,
    deliverer: Deliverer,
}

impl Engine {
    pub(super) fn new(shared: &Shared, sink: Option<Sink>) -> Arc<Engine> {
        let (send, receive) = mpsc::channel(QUEUE_MAX);
        Arc::new(Engine {
            client: shared.client.clone(),
            rules: OnceLock::new(),
            send,
            receive: Mutex::new(Some(receive)),
            deliverer: Deliverer::new(shared, sink),
        })
    }

    /// The rules.
    pub(super) fn rules(&self) -> &Arc<Cache> {
        self.rules.get_or_init(|| {
            let options = ListOptions { namespace: Some(AWS_NAMESPACE.into()), ..ListOptions::default() };
            Cache::start(self.client.clone(), EVENT_RULES, options)
        })
    }

    /// Starts the cache, waits for it, and leaves the services that targets are run on.
    pub async fn prepare(&self, services: Vec<Arc<dyn Service>>) {
        self.deliverer.set_services(services);
        self.rules().wait_synced().await;
    }

    /// Nobody listens: events need not be made.
    pub fn is_idle(&self) -> bool {
        self.rules().is_empty()
    }

    /// Hands an event to every rule that wants it. Never waits.
    pub fn publish(&self, event: &Event) {
        let document = Arc::new(event.document.clone());
        for object in self.rules().list() {
            let Ok(rule) = object.view::<Rule>() else { continue };
            if rule.wants(event) {
                self.deliver(&rule, &document);
            }
        }
    }

    /// Hands an event to all targets of a rule.
    pub(super) fn deliver(&self, rule: &Arc<Rule>, document: &Arc<Value>) {
        let count = rule.spec["Targets"].as_array().map_or(0, Vec::len);
        for target in 0..count {
            let delivery =
                Delivery { rule: rule.clone(), target, event: document.clone(), born: Timestamp::now() };
            if self.send.try_send(delivery).is_err() {
                let (rule, target) = (text(&rule.spec, "Name"), target);
                tracing::warn!(rule, target, "event dropped: too many deliveries wait");
            }
        }
    }

    /// Delivers, until dropped. One call of it works at a time.
    pub async fn run(self: Arc<Self>) {
        let Some(mut queue) = self.receive.lock().take() else { return };
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                delivery = queue.recv(), if under_way.len() < UNDER_WAY_MAX => match delivery {
                    Some(delivery) => under_way.push(self.deliverer.deliver(delivery)),
                    None => return,
                },
                Some(again) = under_way.next() => {
                    // An event for another bus comes back to be matched there.
                    if let Some(event) = again {
                        self.publish(&event);
                    }
                }
            }
        }
    }
}
