//! The store over a real etcd, which is killed, frozen, filled and hidden behind a relay that loses answers.
//!
//! Each test starts an etcd of its own on loopback. Where etcd is not installed the tests say so and pass.

use crate::suite::conforms;
use crate::tools::{DEADLINE, Dice, all, delete, done, events_until, eventually, next, put, set};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};
use store::{
    Endpoint, Etcd, EtcdOptions, Expect, RangeOptions, Revision, Store, StoreError, TxnOutcome, WatchError,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub const CALL: Duration = Duration::from_secs(6);

/// An etcd of the test's own.
struct Server {
    dir: tempfile::TempDir,
    port: u16,
    peer: u16,
    flags: Vec<String>,
    child: Option<Child>,
}

/// A port below those that the kernel gives to connections: nobody gets it while its server is away.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 12_000 + u16::try_from(std::process::id() % 997).unwrap() * 20;
    let mut ports = std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed) % 800);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

impl Server {
    /// `None`, with a message, where etcd is not installed.
    fn start(flags: &[&str]) -> Option<Server> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED: etcd is not installed (Debian: apt-get install etcd-server)");
            return None;
        }
        let flags = flags.iter().map(|flag| flag.to_string()).collect();
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server { dir, port: free_port(), peer: free_port(), flags, child: None };
        server.up();
        Some(server)
    }

    fn up(&mut self) {
        let (client, peer) =
            (format!("http://127.0.0.1:{}", self.port), format!("http://127.0.0.1:{}", self.peer));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(self.dir.path().join("data")).args(["--name", "t", "--logger", "zap"]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("t={peer}")]).args(&self.flags);
        self.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    fn kill9(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn options(&self) -> EtcdOptions {
        options(self.port)
    }

    /// Connected, with waiting until it has started.
    async fn connect(&self) -> Etcd {
        connect(self.options()).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill9();
        }
    }
}

fn options(port: u16) -> EtcdOptions {
    EtcdOptions {
        dial_max: CALL,
        call_max: CALL,
        compact_every: None,
        ..EtcdOptions::new(vec![Endpoint { host: "127.0.0.1".into(), port }])
    }
}

pub async fn connect(options: EtcdOptions) -> Etcd {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match Etcd::connect(options.clone()).await {
            Ok(etcd) => return etcd,
            Err(StoreError::Unavailable(_)) if Instant::now() < deadline => {}
            Err(other) => panic!("{other}"),
        }
    }
}

/// Asks until the store answers.
pub async fn answers(store: &dyn Store) -> Revision {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match store.revision().await {
            Ok(revision) => return revision,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_conforms() {
    let Some(server) = Server::start(&[]) else { return };
    let etcd = Arc::new(server.connect().await);
    // Two clusters over one etcd: a neighbour's keys are not seen.
    let neighbour = connect(EtcdOptions { prefix: "/gantry2".into(), ..server.options() }).await;
    set(&neighbour, "/cas/a", "not ours").await;
    set(&neighbour, "/pages/0000", "not ours").await;
    conforms(etcd.clone()).await;
    assert_eq!(all(&neighbour, "").await.len(), 2);
    let stats = etcd.stats();
    assert!(stats.writes > 1000 && stats.failed_writes == 0 && stats.connects == 1, "{stats:?}");
    assert_eq!(stats.write_times.buckets.iter().sum::<u64>(), stats.writes);
    drop(etcd);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_others_and_large_ones() {
    let Some(server) = Server::start(&[]) else { return };
    let etcd = server.connect().await;
    let large = Bytes::from(vec![b'x'; 1 << 20]);
    for n in 0..40 {
        done(&etcd, put(&format!("/large/{n:02}"), Expect::Absent, large.clone())).await;
    }
    let start = etcd.revision().await.unwrap();
    let range = etcd.range("/large/", RangeOptions::default()).await.unwrap();
    assert_eq!((range.records.len(), range.revision), (40, start));
    assert!(range.records.iter().all(|record| record.value == large));
    let mut replay = etcd.watch("/large/", Revision(0)).await.unwrap();
    assert_eq!(events_until(&mut replay, start).await.len(), 40);
    let too_large = StoreError::Engine("request is too large".into());
    // Larger than etcd takes as a request, as a message, and than we let through.
    for size in [1_600_000, 2_500_000, 4 << 20] {
        assert_eq!(etcd.txn(put("/k", Expect::Any, vec![0; size])).await.unwrap_err(), too_large);
    }
    assert!(matches!(etcd.txn(put("", Expect::Any, "")).await, Err(StoreError::Engine(_))));
    etcd.close();
    assert_eq!(etcd.get("/k", None).await.unwrap_err(), StoreError::Closed);
    assert!(next(&mut replay).await.is_none(), "watches end with the store");
}

/// What a writer was told: acknowledged writes by revision, and those whose outcome it was not told.
type Told = (BTreeMap<Revision, u64>, BTreeSet<Vec<u8>>);

/// Writers that count up a key each, one write after the other, whatever happens to etcd.
pub struct Load {
    etcd: Arc<Etcd>,
    watch: store::Watch,
    stop: Arc<AtomicBool>,
    writers: Vec<tokio::task::JoinHandle<Told>>,
}

impl Load {
    const WRITERS: u64 = 8;

    pub async fn start(etcd: &Arc<Etcd>) -> Load {
        let watch = etcd.watch("/crash/", etcd.revision().await.unwrap()).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let writers =
            (0..Self::WRITERS).map(|writer| tokio::spawn(write_on(etcd.clone(), stop.clone(), writer)));
        Load { etcd: etcd.clone(), watch, writers: writers.collect(), stop }
    }

    /// Waits for more writes.
    pub async fn goes_on(&self) {
        let enough = self.etcd.stats().writes + 40;
        eventually("more writes", || self.etcd.stats().writes >= enough).await;
    }

    /// Acknowledged writes stayed, others said that it is open, and the watch saw every revision once.
    pub async fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut acked = BTreeMap::new();
        let mut open = 0;
        for (writer, task) in self.writers.into_iter().enumerate() {
            let (told, unknown) = task.await.unwrap();
            acked.extend(told.into_iter().map(|(revision, n)| (revision, format!("{writer} {n}"))));
            open += unknown.len();
        }
        let last = set(&*self.etcd, "/crash/end", "").await;
        let events = events_until(&mut self.watch, last).await;
        assert!(
            events.windows(2).all(|pair| pair[0].revision.0 + 1 == pair[1].revision.0),
            "no gap, no repeat"
        );
        let history: BTreeMap<Revision, String> = events
            .iter()
            .map(|event| {
                (event.revision, String::from_utf8(event.record.as_ref().unwrap().value.to_vec()).unwrap())
            })
            .collect();
        for (revision, value) in &acked {
            assert_eq!(history.get(revision), Some(value));
        }
        let unasked = history.len() - 1 - acked.len();
        assert!(unasked <= open, "{unasked} writes were made and not acknowledged, {open} said so");
        let stats = self.etcd.stats();
        eprintln!("{} acknowledged, {} resolved, {open} unknown", acked.len(), stats.resolved_writes);
        acked.len()
    }
}

async fn write_on(etcd: Arc<Etcd>, stop: Arc<AtomicBool>, writer: u64) -> Told {
    let (mut acked, mut open, mut expect) = (BTreeMap::new(), BTreeSet::new(), Expect::Absent);
    let key = format!("/crash/{writer}");
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let start = Instant::now();
        let value = format!("{writer} {n}");
        let outcome = etcd.txn(put(&key, expect, value.clone())).await;
        assert!(start.elapsed() < DEADLINE, "no call hangs");
        match outcome {
            Ok(TxnOutcome::Done { revision, .. }) => {
                acked.insert(revision, n);
                expect = Expect::Modified(revision);
            }
            // Nobody else writes here: it can only be one that was left open and came late.
            Ok(TxnOutcome::Conflict(now)) => {
                let now = now.unwrap();
                assert!(open.contains(&*now.value), "{expect:?}, {value}: {now:?}");
                expect = Expect::Modified(now.modified);
            }
            Err(StoreError::Unavailable(_)) => {}
            Err(StoreError::UnknownOutcome(_)) => {
                open.insert(value.into_bytes());
                let deadline = Instant::now() + DEADLINE;
                let now = loop {
                    match etcd.get(&key, None).await {
                        Ok(now) => break now,
                        Err(error) => assert!(Instant::now() < deadline, "{error}"),
                    }
                };
                expect = now.map_or(Expect::Absent, |now| Expect::Modified(now.modified));
            }
            Err(other) => panic!("{other}"),
        }
    }
    (acked, open)
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_etcd_loses_nothing_that_was_acknowledged() {
    let Some(mut server) = Server::start(&[]) else { return };
    let etcd = Arc::new(server.connect().await);
    let load = Load::start(&etcd).await;
    let mut dice = Dice(u64::from(std::process::id()));
    for _ in 0..4 {
        load.goes_on().await;
        tokio::time::sleep(Duration::from_millis(dice.below(300))).await;
        let resumes = etcd.stats().watch_resumes;
        server.kill9();
        tokio::time::sleep(Duration::from_millis(dice.below(500))).await;
        server.up();
        answers(&*etcd).await;
        eventually("the watch goes on", || etcd.stats().watch_resumes > resumes).await;
    }
    let acked = load.end().await;
    assert!(acked > 100, "{acked} writes, {:?}", etcd.stats());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_etcd_is_an_error_in_time() {
    let Some(mut server) = Server::start(&[]) else { return };
    let etcd = server.connect().await;
    let revision = set(&etcd, "/k", "1").await;
    let mut watch = etcd.watch("/", revision).await.unwrap();
    server.kill9();
    for _ in 0..2 {
        let start = Instant::now();
        let read = etcd.get("/k", None).await.unwrap_err();
        assert!(matches!(&read, StoreError::Unavailable(text) if text.contains("127.0.0.1")), "{read}");
        let write = etcd.txn(put("/k", Expect::Modified(revision), "never")).await.unwrap_err();
        assert!(matches!(write, StoreError::Unavailable(_)), "{write}");
        assert!(start.elapsed() < DEADLINE);
    }
    let mut later = etcd.watch("/", revision).await.unwrap();
    let refused = Etcd::connect(server.options()).await.err().unwrap();
    assert!(refused.to_string().contains("refused"), "{refused}");
    server.up();
    assert_eq!(answers(&etcd).await, revision, "a write that was refused is not made later");
    let second = set(&etcd, "/k", "2").await;
    for watch in [&mut watch, &mut later] {
        let events = events_until(watch, second).await;
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].previous.as_ref().unwrap().value, "1");
    }
    // Frozen: the connection stands, and nothing comes.
    server.signal("-STOP");
    let start = Instant::now();
    let write = etcd.txn(put("/k", Expect::Modified(second), "3")).await.unwrap_err();
    assert!(matches!(write, StoreError::UnknownOutcome(_)), "{write}");
    assert!(etcd.revision().await.is_err());
    assert!(start.elapsed() < DEADLINE);
    server.signal("-CONT");
    let third = done(&etcd, put("/k", Expect::Any, "4")).await;
    let last = events_until(&mut watch, third).await.pop().unwrap();
    assert_eq!(last.record.unwrap().value, "4");
}

/// A compaction while etcd's watchers were cut off: the watch cannot go on and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_missed_something_is_told() {
    let Some(server) = Server::start(&[]) else { return };
    let relay = Relay::start(server.port).await;
    let near = server.connect().await;
    let far = connect(options(relay.port)).await;
    let mut watch = far.watch("/", near.revision().await.unwrap()).await.unwrap();
    let first = set(&near, "/a", "1").await;
    assert_eq!(events_until(&mut watch, first).await.len(), 1);
    relay.cut(true);
    set(&near, "/a", "2").await;
    done(&near, delete("/a", Expect::Any)).await;
    let oldest = set(&near, "/b", "3").await;
    near.compact(oldest).await.unwrap();
    relay.cut(false);
    assert_eq!(next(&mut watch).await, Some(Err(WatchError::Compacted { asked: first, oldest })));
    assert!(next(&mut watch).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_is_cut() {
    let Some(server) = Server::start(&[]) else { return };
    let etcd = connect(EtcdOptions { watch_batches_max: 4, ..server.options() }).await;
    let mut slow = etcd.watch("/", Revision(0)).await.unwrap();
    // A busy etcd sends many changes in one batch, so how many it takes to fill the queue is not known.
    let deadline = Instant::now() + DEADLINE;
    while etcd.stats().watchers > 0 {
        assert!(Instant::now() < deadline, "it goes on");
        set(&etcd, "/k", "v").await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut revisions = Vec::new();
    let end = loop {
        match next(&mut slow).await.unwrap() {
            Ok(events) => revisions.extend(events.iter().map(|event| event.revision.0)),
            Err(error) => break error,
        }
    };
    assert_eq!(end, WatchError::TooSlow);
    assert!(revisions.len() >= 4 && revisions.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{revisions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_etcd_refuses_writes_only() {
    let Some(server) = Server::start(&["--quota-backend-bytes", "2097152"]) else { return };
    let etcd = server.connect().await;
    let value = vec![b'x'; 200_000];
    let mut written = 0;
    let full = loop {
        match etcd.txn(put(&format!("/{written:03}"), Expect::Absent, value.clone())).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StoreError::Full(_)), "{full}");
    assert_eq!(all(&etcd, "").await.len(), written, "reads go on");
    done(&etcd, delete("/000", Expect::Present)).await;
}

/// Of two servers one compacts, at each turn; what is older than the turn before is forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn history_is_forgotten_in_time() {
    let Some(server) = Server::start(&[]) else { return };
    let options = EtcdOptions { compact_every: Some(Duration::from_millis(700)), ..server.options() };
    let (one, two) = (connect(options.clone()).await, connect(options).await);
    let first = set(&one, "/k", "1").await;
    set(&two, "/k", "2").await;
    let deadline = Instant::now() + DEADLINE;
    let oldest = loop {
        match one.get("/k", Some(first)).await {
            Err(StoreError::Compacted { oldest, .. }) => break oldest,
            other => assert!(other.is_ok() && Instant::now() < deadline, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(oldest > first);
    assert_eq!(all(&one, "").await.len(), 1, "the clock is no record");
}

/// A relay before etcd that can be cut, and that can lose what etcd says.
struct Relay {
    port: u16,
    cut: Arc<tokio::sync::watch::Sender<bool>>,
    deaf: Arc<tokio::sync::watch::Sender<bool>>,
}

impl Relay {
    async fn start(target: u16) -> Relay {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let [cut, deaf] = [(); 2].map(|()| Arc::new(tokio::sync::watch::Sender::new(false)));
        let (cuts, is_deaf) = (cut.clone(), deaf.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (mut cut, mut deaf) = (cuts.subscribe(), is_deaf.subscribe());
                tokio::spawn(async move {
                    if *cut.borrow() {
                        return;
                    }
                    let far = tokio::net::TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                    let (mut near_in, mut near_out) = near.into_split();
                    let (mut far_in, mut far_out) = far.into_split();
                    let back = async {
                        let mut buffer = vec![0; 65_536];
                        while let Ok(read @ 1..) = far_in.read(&mut buffer).await {
                            // The moment when a server dies between doing and answering. (Not before it has done it:
                            // etcd gives up what a broken connection asked for.)
                            if *deaf.borrow() {
                                let _ = deaf.wait_for(|deaf| !deaf).await;
                                return;
                            }
                            if near_out.write_all(&buffer[..read]).await.is_err() {
                                return;
                            }
                        }
                    };
                    tokio::select! {
                        () = back => {}
                        _ = tokio::io::copy(&mut near_in, &mut far_out) => {}
                        _ = cut.wait_for(|cut| *cut) => {}
                    }
                });
            }
        });
        Relay { port, cut, deaf }
    }

    /// Cuts what runs over it and refuses more, or lets it through again.
    fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// What etcd says is held back until this is undone; then the connections break on which it said something.
    fn deaf(&self, deaf: bool) {
        self.deaf.send_replace(deaf);
    }
}

/// etcd made the write and the answer was lost: reading back tells, also where somebody else wrote the same bytes.
#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_are_found_out() {
    let Some(server) = Server::start(&[]) else { return };
    let relay = Arc::new(Relay::start(server.port).await);
    let near = server.connect().await;
    // Ample, so that a loaded machine makes no outcome unknown that can be found out.
    let far = Arc::new(connect(EtcdOptions { call_max: DEADLINE / 2, ..options(relay.port) }).await);
    let start = set(&near, "/k", "0").await;
    // Deaf until etcd has made the write.
    let lossy = |txn: store::Txn| {
        let (far, relay, near) = (far.clone(), relay.clone(), &near);
        async move {
            let before = near.revision().await.unwrap();
            relay.deaf(true);
            let writing = tokio::spawn(async move { far.txn(txn).await });
            let deadline = Instant::now() + DEADLINE;
            while near.revision().await.unwrap() == before {
                assert!(Instant::now() < deadline, "it does not arrive");
            }
            (relay, writing)
        }
    };
    let (relay, writing) = lossy(put("/k", Expect::Modified(start), "1")).await;
    relay.deaf(false);
    let TxnOutcome::Done { revision, previous } = writing.await.unwrap().unwrap() else { panic!("conflict") };
    assert_eq!(previous.unwrap().modified, start);
    assert_eq!(near.get("/k", None).await.unwrap().unwrap().modified, revision);

    let (relay, writing) = lossy(put("/new", Expect::Absent, "1")).await;
    relay.deaf(false);
    assert!(matches!(writing.await.unwrap().unwrap(), TxnOutcome::Done { previous: None, .. }));

    // Made, and replaced by the same bytes before it could be read back.
    let (relay, writing) = lossy(put("/k", Expect::Modified(revision), "2")).await;
    set(&near, "/k", "2").await;
    relay.deaf(false);
    assert!(matches!(writing.await.unwrap(), Err(StoreError::UnknownOutcome(_))));

    // Deleted: it looks the same as if somebody else had.
    let (relay, writing) = lossy(delete("/new", Expect::Present)).await;
    relay.deaf(false);
    assert!(matches!(writing.await.unwrap(), Err(StoreError::UnknownOutcome(_))));
    let stats = far.stats();
    assert_eq!((stats.resolved_writes, stats.unknown_writes, stats.failed_writes), (2, 2, 2));
}

/// With one member gone the other one serves; the first is an address where nobody listens.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_endpoint_serves() {
    let Some(server) = Server::start(&[]) else { return };
    let mut options = server.options();
    options.endpoints.insert(0, Endpoint { host: "127.0.0.1".into(), port: free_port() });
    let etcd = connect(options).await;
    set(&etcd, "/k", "1").await;
    assert_eq!(etcd.stats().endpoint, Some(format!("127.0.0.1:{}", server.port)));
}
