//! Names for the resources that Gantry's own components read and write.

use crate::Gvr;

macro_rules! gvrs {
    ($($name:ident = $group:literal / $version:literal / $resource:literal;)*) => {
        $(#[doc = concat!("`", $resource, "` of `", $group, "/", $version, "`.")]
        pub const $name: Gvr = Gvr::new($group, $version, $resource);)*
    };
}

gvrs! {
    CONFIG_MAPS = "" / "v1" / "configmaps";
    ENDPOINTS = "" / "v1" / "endpoints";
    EVENTS = "" / "v1" / "events";
    NAMESPACES = "" / "v1" / "namespaces";
    NODES = "" / "v1" / "nodes";
    PERSISTENT_VOLUMES = "" / "v1" / "persistentvolumes";
    PERSISTENT_VOLUME_CLAIMS = "" / "v1" / "persistentvolumeclaims";
    PODS = "" / "v1" / "pods";
    SECRETS = "" / "v1" / "secrets";
    SERVICES = "" / "v1" / "services";
    SERVICE_ACCOUNTS = "" / "v1" / "serviceaccounts";
    SUBJECT_ACCESS_REVIEWS = "authorization.k8s.io" / "v1" / "subjectaccessreviews";
    CERTIFICATE_SIGNING_REQUESTS = "certificates.k8s.io" / "v1" / "certificatesigningrequests";
    DAEMON_SETS = "apps" / "v1" / "daemonsets";
    DEPLOYMENTS = "apps" / "v1" / "deployments";
    REPLICA_SETS = "apps" / "v1" / "replicasets";
    STATEFUL_SETS = "apps" / "v1" / "statefulsets";
    JOBS = "batch" / "v1" / "jobs";
    LEASES = "coordination.k8s.io" / "v1" / "leases";
    ENDPOINT_SLICES = "discovery.k8s.io" / "v1" / "endpointslices";
    PRIORITY_CLASSES = "scheduling.k8s.io" / "v1" / "priorityclasses";
    CLUSTER_ROLES = "rbac.authorization.k8s.io" / "v1" / "clusterroles";
    CLUSTER_ROLE_BINDINGS = "rbac.authorization.k8s.io" / "v1" / "clusterrolebindings";
    ROLES = "rbac.authorization.k8s.io" / "v1" / "roles";
    ROLE_BINDINGS = "rbac.authorization.k8s.io" / "v1" / "rolebindings";
    RUNTIME_CLASSES = "node.k8s.io" / "v1" / "runtimeclasses";
}
