//! `gantry up`: control plane and node in one process, as a list of components started in order.
//!
//! Each component takes what it needs from the [`Instance`] and leaves what others need there. They stop in the
//! reverse order; pods run on.

pub mod aws;
mod control;
mod dial;
pub mod door;
pub mod ecs;
mod elb;
mod encryption;
pub mod events;
pub mod exec;
mod extenders;
pub mod facts;
mod figures;
mod leader;
pub mod logs;
pub mod metering;
pub mod node;
mod outside;
mod place;
pub mod registry;
mod registry_access;
pub mod server;

use crate::config::Config;
use crate::join::{Asked, publish};
use crate::{admin as socket, down, env, preflight};
use anyhow::{Context, Result};
pub use control::{admin, private_folder};
use facts::Facts;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Threads for blocking work (image unpacking, netlink): bounded, since each costs a stack.
const BLOCKING_THREADS_MAX: usize = 64;
/// Worker threads, at most; more only cost memory on the machines this is for.
const WORKERS_MAX: usize = 8;
/// Heaps of the C library: fewer of them halve what a busy hour leaves behind, at no cost in CPU on two cores.
const HEAPS_MIN: u16 = 2;
/// More cores get more heaps, so that threads do not wait for each other.
const CORES_A_HEAP: usize = 4;
/// How often freed memory goes back to the kernel: some milliseconds each time.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(150);

type Started<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;
/// A component: what it is called, and how it starts.
pub type Component = (&'static str, for<'a> fn(&'a mut Instance) -> Started<'a>);

/// All components, in the order they start.
const COMPONENTS: &[Component] = &[
    ("store", |i| Box::pin(control::store(i))),
    ("certificates", |i| Box::pin(control::certificates(i))),
    ("API server", |i| Box::pin(control::api(i))),
    ("controllers", |i| Box::pin(control::controllers(i))),
    ("AWS account", |i| Box::pin(aws::account(i))),
    ("joining information", |i| Box::pin(publish::start(i))),
    ("node's pod range", |i| Box::pin(node::range(i))),
    ("images", |i| Box::pin(node::images(i))),
    ("registry", |i| Box::pin(registry::start(i))),
    ("network", |i| Box::pin(node::network(i))),
    ("node agent", |i| Box::pin(node::agent(i))),
    ("peers", |i| Box::pin(node::peers(i))),
    ("services", |i| Box::pin(node::services(i))),
    ("DNS", |i| Box::pin(node::dns(i))),
    ("logs", |i| Box::pin(logs::open(i))),
    ("exec", |i| Box::pin(exec::start(i))),
    ("network services of AWS", |i| Box::pin(elb::services(i))),
    ("events", |i| Box::pin(events::open(i))),
    ("AWS endpoint", |i| Box::pin(aws::endpoint(i))),
    ("log drivers", |i| Box::pin(logs::drivers(i))),
    ("event deliveries", |i| Box::pin(events::start(i))),
    ("ECS controllers", |i| Box::pin(ecs::controllers(i))),
    ("load balancers", |i| Box::pin(elb::controller(i))),
    ("task metadata", |i| Box::pin(ecs::metadata(i))),
    ("nodes' door", |i| Box::pin(door::open(i))),
    ("metering", |i| Box::pin(metering::start(i))),
    ("admin socket", |i| Box::pin(control::admin(i))),
];

/// A running (or starting) instance.
pub struct Instance {
    /// Settings.
    pub config: Config,
    /// What was found out from them.
    pub facts: Facts,
    /// Where a node without a control plane belongs.
    pub asked: Option<Asked>,
    started: Instant,
    /// The control plane, here or elsewhere.
    pub control: control::Parts,
    node: node::Parts,
    /// The AWS side.
    pub aws: aws::Parts,
    /// Aborted at the end.
    pub tasks: Vec<JoinHandle<()>>,
    /// Turns true when the process is to end.
    stop: Arc<watch::Sender<bool>>,
}

/// Runs until told to stop.
pub fn run(config: Config, _: &[String]) -> Result<()> {
    preflight::check(&config)?;
    serve(config, COMPONENTS, None)
}

/// Starts components and runs until told to stop.
pub fn serve(config: Config, components: &[Component], asked: Option<Asked>) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    sys::memory::share_heaps(u16::try_from(cores / CORES_A_HEAP).unwrap_or(u16::MAX).max(HEAPS_MIN));
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log).context("--log")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let workers = cores.clamp(1, WORKERS_MAX);
    config.keep_name()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(workers)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()?;
    runtime.spawn(give_memory_back());
    let result = runtime.block_on(up(config.clone(), components, asked));
    runtime.shutdown_background();
    if result.is_err() {
        down::after_failed_start(&config);
    }
    result
}

/// What was freed after a busy time is not ours to keep.
async fn give_memory_back() {
    loop {
        tokio::time::sleep(GIVE_BACK_EVERY).await;
        let _ = tokio::task::spawn_blocking(sys::memory::give_back).await;
    }
}

async fn up(config: Config, components: &[Component], asked: Option<Asked>) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let facts = Facts::find(&config)?;
    let stop = Arc::new(watch::Sender::new(false));
    let mut instance = Instance {
        config,
        facts,
        asked,
        started: Instant::now(),
        control: control::Parts::default(),
        node: node::Parts::default(),
        aws: aws::Parts::default(),
        tasks: Vec::new(),
        stop: stop.clone(),
    };
    let begun = async {
        for (name, start) in components {
            start(&mut instance).await.with_context(|| format!("starting the {name}"))?;
            tracing::info!(component = name, ms = instance.started.elapsed().as_millis() as u64, "started");
        }
        node::wait_ready(&instance).await
    };
    let mut stopped = stop.subscribe();
    let started = tokio::select! {
        started = begun => started.map(|()| true),
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted while starting")),
        // By `gantry down`, which removes the rest: the node may never get ready.
        _ = stopped.wait_for(|s| *s) => Ok(false),
    };
    if matches!(started, Ok(true)) {
        announce(&instance)?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = stopped.wait_for(|s| *s) => {}
        }
        let what = if instance.asked.is_some() { "agent" } else { "control plane" };
        println!("stopping the {what}; pods run on (the next start adopts them, `gantry down` stops them)");
    }
    instance.stop().await;
    started.map(drop)
}

fn announce(instance: &Instance) -> Result<()> {
    println!(
        "ready in {} ms: node {} at {}",
        instance.started.elapsed().as_millis(),
        instance.facts.node_name,
        instance.facts.node_ip
    );
    if instance.asked.is_some() {
        return Ok(());
    }
    println!("\nto use it, in another shell:\n");
    let program = std::env::args().next().unwrap_or("gantry".into());
    let defaults = Config::from_args(&[])?.0;
    let mut flags = String::new();
    if instance.config.data_dir != defaults.data_dir {
        flags = format!(" --data-dir {}", instance.config.data_dir.display());
    }
    println!("  eval \"$({program} env{flags})\"\n\nwhich is:\n\n{}", env::lines(&instance.config)?);
    Ok(())
}

impl Instance {
    async fn stop(mut self) {
        self.stop.send_replace(true);
        self.node.stop().await;
        self.tasks.iter().for_each(JoinHandle::abort);
        self.control.stop().await;
        let _ = std::fs::remove_file(self.config.socket());
    }
}

/// Answers of the admin socket.
async fn answer(view: Arc<control::AdminView>, question: socket::Question) -> Result<serde_json::Value> {
    match question {
        socket::Question::Stop => {
            view.stop.send_replace(true);
            Ok(serde_json::Value::Null)
        }
        socket::Question::Status => Ok(view.status()),
        other => node::answer(&view, other).await,
    }
}
