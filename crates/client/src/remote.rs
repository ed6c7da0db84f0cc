//! The remote [`Client`](crate::Client): the same trait over HTTPS, on the `kube` library.
