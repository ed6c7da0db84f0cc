//! UDP listeners: datagrams of one client (address and port) go to one target for as long as some go either way.
//!
//! Each flow has a socket of its own towards its target, so that answers find back; targets see the balancer's address.
//! All state is one task's. A flow ends when it is idle for [`FLOW_IDLE`] or its target leaves the configuration.

use crate::serve::Door;
use crate::state::Held;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A flow without datagrams for so long is over; NLB's own.
pub const FLOW_IDLE: Duration = Duration::from_secs(120);
/// Flows of one listener: each holds a descriptor. Datagrams of further clients are dropped.
pub const FLOWS_MAX: usize = 4_096;
/// The longest datagram.
const DATAGRAM_MAX: usize = 65_535;
/// Pause after a receive that failed.
const PAUSE: Duration = Duration::from_millis(50);

/// A client's way to its target.
struct Flow {
    socket: Arc<UdpSocket>,
    /// Milliseconds from the listener's start to the last datagram.
    used: Arc<AtomicU64>,
}

/// Forwards until it is dropped.
pub(crate) async fn serve(door: Arc<Door>, socket: UdpSocket) {
    let (socket, start) = (Arc::new(socket), Instant::now());
    let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
    let mut running: JoinSet<SocketAddr> = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(ended) = running.join_next() => {
                ended.iter().for_each(|client| drop(flows.remove(client)));
                continue;
            }
        };
        let Ok((length, client)) = received else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        if !flows.contains_key(&client) && flows.len() < FLOWS_MAX {
            let Some((flow, held)) = open(&door).await else { continue };
            let used = Arc::new(AtomicU64::new(0));
            let answers = answers(flow.clone(), (socket.clone(), client), held, (used.clone(), start));
            running.spawn(answers);
            flows.insert(client, Flow { socket: flow, used });
        }
        let Some(flow) = flows.get(&client) else { continue };
        flow.used.store(millis(start), Relaxed);
        // What a target does not take is lost, as datagrams are.
        if let Err(error) = flow.socket.send(&buffer[..length]).await {
            tracing::debug!(listener = %door.id, %error, "a datagram was dropped");
        }
    }
}

fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A socket towards a target of the listener's groups.
async fn open(door: &Door) -> Option<(Arc<UdpSocket>, Held)> {
    let held = door.group(&door.shared.snapshot())?.choose(None, &[])?;
    let address = held.target.config.read().address;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    socket.connect(address).await.ok()?;
    Some((Arc::new(socket), held))
}

/// Brings a target's answers to the client until the flow is over; the client names the flow.
async fn answers(
    flow: Arc<UdpSocket>,
    (socket, client): (Arc<UdpSocket>, SocketAddr),
    held: Held,
    (used, start): (Arc<AtomicU64>, Instant),
) -> SocketAddr {
    let gone = held.target.clone();
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let until = start + Duration::from_millis(used.load(Relaxed)) + FLOW_IDLE;
        tokio::select! {
            received = flow.recv(&mut buffer) => match received {
                Ok(length) => {
                    used.store(millis(start), Relaxed);
                    let _ = socket.send_to(&buffer[..length], client).await;
                }
                // The target refused one (an ICMP error): others may be taken.
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
            () = tokio::time::sleep_until(until) => {
                if start + Duration::from_millis(used.load(Relaxed)) + FLOW_IDLE <= Instant::now() {
                    return client;
                }
            }
            () = gone.gone.notified() => return client,
        }
    }
}
