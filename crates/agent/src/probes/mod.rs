//! Carrying out probes and hooks: run a command, ask over HTTP or gRPC, connect, sleep.
//!
//! One attempt each; when and how often is `decide`'s. Deliberately not here: thresholds, restarts.

mod grpc;
mod http_get;

use crate::pod::ContainerView;
use http_get::Get;
use k8s_openapi::api::core::v1::{HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use runtime::Runtime;
use std::time::Duration;
use tokio::net::TcpStream;

/// Output of a failed command that a message shows.
const OUTPUT_MAX: usize = 1024;

/// What to do once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// Run a command in the container.
    Exec(Vec<String>),
    /// HTTP GET.
    Http(Get),
    /// Connect.
    Tcp {
        /// Host.
        host: String,
        /// Port.
        port: u16,
    },
    /// gRPC health check.
    Grpc {
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// Service, "" for the whole server.
        service: String,
    },
    /// Wait.
    Sleep(Duration),
}

/// The container a check is about.
pub struct Subject<'a> {
    /// Pod UID.
    pub uid: &'a str,
    /// Container id in the runtime.
    pub id: &'a str,
}

fn port(container: &ContainerView, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.spec.ports.iter().flatten();
            match ports.find(|p| p.name.as_deref() == Some(name)) {
                Some(port) => port.container_port,
                None => name.parse().map_err(|_| format!("couldn't find port: {name:?} in container"))?,
            }
        }
    };
    u16::try_from(number).ok().filter(|p| *p > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

fn http(action: &HTTPGetAction, container: &ContainerView, pod_ip: &str) -> Result<Check, String> {
    let path = action.path.as_deref().unwrap_or("/");
    let headers = action.http_headers.iter().flatten();
    Ok(Check::Http(Get {
        tls: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
        host: action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip).to_string(),
        port: port(container, &action.port)?,
        path: if path.starts_with('/') { path.to_string() } else { format!("/{path}") },
        headers: headers.map(|h| (h.name.clone(), h.value.clone())).collect(),
    }))
}

fn tcp(action: &TCPSocketAction, container: &ContainerView, pod_ip: &str) -> Result<Check, String> {
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip).to_string();
    Ok(Check::Tcp { host, port: port(container, &action.port)? })
}

impl Check {
    /// From a probe.
    pub fn of_probe(probe: &Probe, container: &ContainerView, pod_ip: &str) -> Result<Check, String> {
        if let Some(exec) = &probe.exec {
            return Ok(Check::Exec(exec.command.clone().unwrap_or_default()));
        }
        if let Some(action) = &probe.http_get {
            return http(action, container, pod_ip);
        }
        if let Some(action) = &probe.tcp_socket {
            return tcp(action, container, pod_ip);
        }
        let Some(action) = &probe.grpc else { return Err("missing probe handler".into()) };
        let port = port(container, &IntOrString::Int(action.port))?;
        Ok(Check::Grpc { host: pod_ip.into(), port, service: action.service.clone().unwrap_or_default() })
    }

    /// From a lifecycle hook.
    pub fn of_hook(
        hook: &LifecycleHandler,
        container: &ContainerView,
        pod_ip: &str,
    ) -> Result<Check, String> {
        if let Some(exec) = &hook.exec {
            return Ok(Check::Exec(exec.command.clone().unwrap_or_default()));
        }
        if let Some(action) = &hook.http_get {
            return http(action, container, pod_ip);
        }
        if let Some(action) = &hook.tcp_socket {
            return tcp(action, container, pod_ip);
        }
        let Some(sleep) = &hook.sleep else { return Err("invalid handler: no action".into()) };
        Ok(Check::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))))
    }

    /// Does it, within the time; the error says why it failed.
    pub async fn run(
        &self,
        runtime: &Runtime,
        subject: &Subject<'_>,
        within: Duration,
    ) -> Result<(), String> {
        match self {
            Check::Exec(args) => exec(runtime, subject, args, within).await,
            Check::Http(get) => match tokio::time::timeout(within, http_get::get(get)).await {
                Ok(result) => result,
                Err(_) => Err(format!(
                    "Get \"{}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
                    get.url()
                )),
            },
            Check::Tcp { host, port } => {
                match tokio::time::timeout(within, TcpStream::connect((host.as_str(), *port))).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(error)) => Err(http_get::dial_error(host, *port, &error)),
                    Err(_) => Err(format!("dial tcp {host}:{port}: i/o timeout")),
                }
            }
            Check::Grpc { host, port, service } => {
                match tokio::time::timeout(within, grpc::check(host, *port, service)).await {
                    Ok(result) => result,
                    Err(_) => Err(format!(
                        "timeout: failed to connect service \"{host}:{port}\" within {}s: context deadline exceeded",
                        within.as_secs()
                    )),
                }
            }
            Check::Sleep(time) => {
                tokio::time::sleep((*time).min(within)).await;
                Ok(())
            }
        }
    }
}

async fn exec(
    runtime: &Runtime,
    subject: &Subject<'_>,
    args: &[String],
    within: Duration,
) -> Result<(), String> {
    match runtime.exec_sync(subject.uid, subject.id, args.to_vec(), within).await {
        Ok((0, _)) => Ok(()),
        Ok((code, output)) => {
            let end = output.len().min(OUTPUT_MAX);
            let text = String::from_utf8_lossy(&output[..end]).into_owned();
            Err(if text.is_empty() { format!("command exited with {code}") } else { text })
        }
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
