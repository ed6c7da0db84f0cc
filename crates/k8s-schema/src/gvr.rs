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
    CUSTOM_RESOURCE_DEFINITIONS = "apiextensions.k8s.io" / "v1" / "customresourcedefinitions";
    IP_ADDRESSES = "networking.k8s.io" / "v1" / "ipaddresses";
    LEASE_CANDIDATES = "coordination.k8s.io" / "v1beta1" / "leasecandidates";
    LEASES = "coordination.k8s.io" / "v1" / "leases";
    ENDPOINT_SLICES = "discovery.k8s.io" / "v1" / "endpointslices";
    SERVICE_CIDRS = "networking.k8s.io" / "v1" / "servicecidrs";
    STORAGE_VERSION_MIGRATIONS = "storagemigration.k8s.io" / "v1beta1" / "storageversionmigrations";
    POD_GROUPS = "scheduling.k8s.io" / "v1alpha2" / "podgroups";
    WORKLOADS = "scheduling.k8s.io" / "v1alpha2" / "workloads";
    PRIORITY_CLASSES = "scheduling.k8s.io" / "v1" / "priorityclasses";
    CLUSTER_ROLES = "rbac.authorization.k8s.io" / "v1" / "clusterroles";
    CLUSTER_ROLE_BINDINGS = "rbac.authorization.k8s.io" / "v1" / "clusterrolebindings";
    ROLES = "rbac.authorization.k8s.io" / "v1" / "roles";
    ROLE_BINDINGS = "rbac.authorization.k8s.io" / "v1" / "rolebindings";
    POD_METRICS = "metrics.k8s.io" / "v1beta1" / "pods";
    NODE_METRICS = "metrics.k8s.io" / "v1beta1" / "nodes";
    RUNTIME_CLASSES = "node.k8s.io" / "v1" / "runtimeclasses";
    ECS_ACCOUNT_SETTINGS = "ecs.gantry.dev" / "v1" / "accountsettings";
    ECS_CAPACITY_PROVIDERS = "ecs.gantry.dev" / "v1" / "capacityproviders";
    ECS_CLUSTERS = "ecs.gantry.dev" / "v1" / "clusters";
    ECS_CONTAINER_INSTANCES = "ecs.gantry.dev" / "v1" / "containerinstances";
    ECS_SERVICE_DEPLOYMENTS = "ecs.gantry.dev" / "v1" / "servicedeployments";
    ECS_SERVICE_REVISIONS = "ecs.gantry.dev" / "v1" / "servicerevisions";
    ECS_SERVICES = "ecs.gantry.dev" / "v1" / "services";
    ECS_TASK_DEFINITIONS = "ecs.gantry.dev" / "v1" / "taskdefinitions";
    ECS_TASKS = "ecs.gantry.dev" / "v1" / "tasks";
    ECR_REPOSITORIES = "ecr.gantry.dev" / "v1" / "repositories";
    ELB_LISTENERS = "elasticloadbalancing.gantry.dev" / "v1" / "listeners";
    ELB_LOAD_BALANCERS = "elasticloadbalancing.gantry.dev" / "v1" / "loadbalancers";
    ELB_RULES = "elasticloadbalancing.gantry.dev" / "v1" / "rules";
    ELB_TARGET_GROUPS = "elasticloadbalancing.gantry.dev" / "v1" / "targetgroups";
    EC2_NETWORK_INTERFACES = "ec2.gantry.dev" / "v1" / "networkinterfaces";
    EC2_RESOURCES = "ec2.gantry.dev" / "v1" / "resources";
    EC2_SECURITY_GROUPS = "ec2.gantry.dev" / "v1" / "securitygroups";
    EC2_SUBNETS = "ec2.gantry.dev" / "v1" / "subnets";
    EC2_VPCS = "ec2.gantry.dev" / "v1" / "vpcs";
    DISCOVERY_INSTANCES = "servicediscovery.gantry.dev" / "v1" / "instances";
    DISCOVERY_NAMESPACES = "servicediscovery.gantry.dev" / "v1" / "namespaces";
    DISCOVERY_SERVICES = "servicediscovery.gantry.dev" / "v1" / "services";
    LOG_GROUPS = "logs.gantry.dev" / "v1" / "loggroups";
    SSM_PARAMETERS = "ssm.gantry.dev" / "v1" / "parameters";
    AWS_SECRETS = "secretsmanager.gantry.dev" / "v1" / "secrets";
    IAM_ROLES = "iam.gantry.dev" / "v1" / "roles";
    EVENT_RULES = "events.gantry.dev" / "v1" / "rules";
}
