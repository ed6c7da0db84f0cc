//! How the API server reaches an agent: the node's address and kubelet port, TLS both ways verified.

use apiserver::{Duplex, NodeDialer};
use async_trait::async_trait;
use auth::{Issued, TlsError};
use client::{ApiClient, ObjectKey};
use controllers::Reach;
use grpc::{Answer, Status, code};
use k8s_openapi::api::core::v1::Node;
use k8s_schema::gvr;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest wait for a node to accept.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The kubelet's port where a node does not say.
const PORT: u16 = 10_250;
/// Longest wait for a driver: agents give up earlier.
const CALL_MAX: Duration = Duration::from_secs(150);

/// Dials agents with the API server's client certificate.
pub struct KubeletDialer {
    tls: TlsConnector,
    client: OnceLock<ApiClient>,
}

impl KubeletDialer {
    /// A dialer that shows `issued` and trusts the cluster's authority.
    pub fn new(issued: &Issued, ca_pem: &str) -> Result<Arc<Self>, TlsError> {
        let tls = TlsConnector::from(auth::client_config(issued, ca_pem)?);
        Ok(Arc::new(KubeletDialer { tls, client: OnceLock::new() }))
    }

    /// Gives it the door to look nodes up; it stands apart because the API server is made from the dialer.
    pub fn set_client(&self, client: ApiClient) {
        let _ = self.client.set(client);
    }

    async fn address(&self, node: &str) -> io::Result<(IpAddr, u16)> {
        let client = self.client.get().ok_or_else(|| io::Error::other("the API server is starting"))?;
        let object = client.get(&gvr::NODES, &ObjectKey::cluster(node)).await.map_err(io::Error::other)?;
        let view = object.view::<Node>().map_err(io::Error::other)?;
        let status = view.status.as_ref();
        let address = status
            .into_iter()
            .flat_map(|s| s.addresses.iter().flatten())
            .find(|a| a.type_ == "InternalIP")
            .and_then(|a| a.address.parse().ok())
            .ok_or_else(|| io::Error::other(format!("node {node} has no address")))?;
        let endpoint = status.and_then(|s| s.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref());
        Ok((address, endpoint.and_then(|e| u16::try_from(e.port).ok()).unwrap_or(PORT)))
    }
}

#[async_trait]
impl NodeDialer for KubeletDialer {
    async fn dial(&self, node: &str) -> io::Result<Box<dyn Duplex>> {
        let (address, port) = self.address(node).await?;
        let connect = async {
            let stream = TcpStream::connect((address, port)).await?;
            stream.set_nodelay(true)?;
            self.tls.connect(ServerName::IpAddress(address.into()), stream).await
        };
        let stream = tokio::time::timeout(CONNECT_MAX, connect).await;
        Ok(Box::new(stream.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("node {node} does not answer"))
        })??))
    }
}

#[async_trait]
impl Reach for KubeletDialer {
    async fn call(&self, node: &str, driver: &str, method: &str, request: &Value) -> Answer {
        let exchange = async {
            let stream = self.dial(node).await.map_err(|e| Status::new(code::UNAVAILABLE, e))?;
            grpc::relayed(stream, driver, method, request).await
        };
        let late = |_| Status::new(code::DEADLINE_EXCEEDED, "context deadline exceeded");
        tokio::time::timeout(CALL_MAX, exchange).await.map_err(late)?
    }
}
