//! Who a caller is: the cluster's certificate authority, certificates, tokens, AWS access keys and signatures.
//!
//! Invariants: private keys are written with mode 0600 before they are used; a certificate names its holder by
//! CN (user) and O (groups), as Kubernetes' x509 authenticator reads them.
//! Deliberately not here: what a caller may do (`apiserver`'s authorizer).

pub mod access;
mod ca;
pub mod csr;
mod identity;
mod keys;
pub mod oidc;
mod rsa;
pub mod sigv4;
mod tls;
pub mod tokens;

pub use access::AccessKeys;
pub use ca::{Ca, CaError, Issued, SYSTEM_MASTERS};
pub use identity::{Identity, identity_of};
pub use tls::{
    ClientAuthority, Serving, TlsError, client_config, presenting_client_config, server_config, serving,
    trusting_client_config, unchecked_client_config,
};
pub use tokens::ServiceTokens;
