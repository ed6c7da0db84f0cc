//! Identities: user, groups, extras, as authentication yields them and authorization reads them.

use rustls_pki_types::CertificateDer;
use std::collections::BTreeMap;
use x509_parser::prelude::{FromDer, X509Certificate};

/// An authenticated (or anonymous) caller.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Identity {
    /// User name.
    pub user: String,
    /// Stable id; "" when the authenticator has none.
    pub uid: String,
    /// Groups, `system:authenticated` or `system:unauthenticated` included.
    pub groups: Vec<String>,
    /// Further facts by key.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// A caller that showed no credentials.
    pub fn anonymous() -> Self {
        Self::new("system:anonymous", ["system:unauthenticated"])
    }

    /// One of Gantry's own components (`system:kube-scheduler`, …) or any named user.
    pub fn new<const N: usize>(user: &str, groups: [&str; N]) -> Self {
        Identity {
            user: user.into(),
            groups: groups.iter().map(|g| g.to_string()).collect(),
            ..Self::default()
        }
    }

    /// An authenticated component of the control plane.
    pub fn component(user: &str) -> Self {
        Self::new(user, ["system:authenticated"])
    }

    /// A service account, as far as its name tells.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let own = format!("system:serviceaccounts:{namespace}");
        let user = crate::tokens::account_user(namespace, name);
        Self::new(&user, ["system:serviceaccounts", &own, "system:authenticated"])
    }

    /// Is the caller in that group?
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// The identity a verified client certificate chain speaks for; `None` when it names no user.
/// (Verification is TLS's: `crate::server_config`.)
pub fn identity_of(chain: &[CertificateDer<'_>]) -> Option<Identity> {
    let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
    let subject = certificate.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_string();
    if user.is_empty() {
        return None;
    }
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_string).collect();
    groups.push("system:authenticated".into());
    Some(Identity { user, groups, ..Identity::default() })
}
