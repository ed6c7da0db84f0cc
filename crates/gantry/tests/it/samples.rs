//! The smallest valid object of every kind that can be created, as `(resource, manifest)`.

/// Resource as kubectl names it, and a manifest whose object is called `sample`.
pub const SAMPLES: &[(&str, &str)] = &[
    ("configmaps", r#"{"apiVersion":"v1","kind":"ConfigMap","data":{"a":"b"}}"#),
    (
        "endpoints",
        r#"{"apiVersion":"v1","kind":"Endpoints","subsets":[{"addresses":[{"ip":"10.9.9.9"}],"ports":[{"port":80}]}]}"#,
    ),
    (
        "events",
        r#"{"apiVersion":"v1","kind":"Event","involvedObject":{"kind":"Pod","name":"p","namespace":"default"},"reason":"R","message":"m","type":"Normal"}"#,
    ),
    (
        "limitranges",
        r#"{"apiVersion":"v1","kind":"LimitRange","spec":{"limits":[{"type":"Container","default":{"cpu":"1"}}]}}"#,
    ),
    ("namespaces", r#"{"apiVersion":"v1","kind":"Namespace"}"#),
    ("nodes", r#"{"apiVersion":"v1","kind":"Node","spec":{"unschedulable":true}}"#),
    (
        "persistentvolumeclaims",
        r#"{"apiVersion":"v1","kind":"PersistentVolumeClaim","spec":{"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"1Gi"}}}}"#,
    ),
    (
        "persistentvolumes",
        r#"{"apiVersion":"v1","kind":"PersistentVolume","spec":{"capacity":{"storage":"1Gi"},"accessModes":["ReadWriteOnce"],"hostPath":{"path":"/tmp"}}}"#,
    ),
    (
        "pods",
        r#"{"apiVersion":"v1","kind":"Pod","spec":{"nodeSelector":{"no":"node"},"containers":[{"name":"c","image":"busybox"}]}}"#,
    ),
    (
        "podtemplates",
        r#"{"apiVersion":"v1","kind":"PodTemplate","template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"busybox"}]}}}"#,
    ),
    (
        "replicationcontrollers",
        r#"{"apiVersion":"v1","kind":"ReplicationController","spec":{"replicas":0,"selector":{"a":"rc"},"template":{"metadata":{"labels":{"a":"rc"}},"spec":{"containers":[{"name":"c","image":"busybox"}]}}}}"#,
    ),
    ("resourcequotas", r#"{"apiVersion":"v1","kind":"ResourceQuota","spec":{"hard":{"pods":"100"}}}"#),
    ("secrets", r#"{"apiVersion":"v1","kind":"Secret","stringData":{"a":"b"}}"#),
    ("serviceaccounts", r#"{"apiVersion":"v1","kind":"ServiceAccount"}"#),
    (
        "services",
        r#"{"apiVersion":"v1","kind":"Service","spec":{"selector":{"a":"svc"},"ports":[{"port":80}]}}"#,
    ),
    (
        "mutatingwebhookconfigurations",
        r#"{"apiVersion":"admissionregistration.k8s.io/v1","kind":"MutatingWebhookConfiguration","webhooks":[]}"#,
    ),
    (
        "validatingwebhookconfigurations",
        r#"{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingWebhookConfiguration","webhooks":[]}"#,
    ),
    (
        "validatingadmissionpolicies",
        r#"{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicy","spec":{"matchConstraints":{"resourceRules":[{"apiGroups":["x"],"apiVersions":["v1"],"operations":["CREATE"],"resources":["x"]}]},"validations":[{"expression":"true"}]}}"#,
    ),
    ("controllerrevisions", r#"{"apiVersion":"apps/v1","kind":"ControllerRevision","revision":1,"data":{}}"#),
    (
        "daemonsets",
        r#"{"apiVersion":"apps/v1","kind":"DaemonSet","spec":{"selector":{"matchLabels":{"a":"ds"}},"template":{"metadata":{"labels":{"a":"ds"}},"spec":{"nodeSelector":{"no":"node"},"containers":[{"name":"c","image":"busybox"}]}}}}"#,
    ),
    (
        "deployments",
        r#"{"apiVersion":"apps/v1","kind":"Deployment","spec":{"replicas":0,"selector":{"matchLabels":{"a":"dep"}},"template":{"metadata":{"labels":{"a":"dep"}},"spec":{"containers":[{"name":"c","image":"busybox"}]}}}}"#,
    ),
    (
        "replicasets",
        r#"{"apiVersion":"apps/v1","kind":"ReplicaSet","spec":{"replicas":0,"selector":{"matchLabels":{"a":"rs"}},"template":{"metadata":{"labels":{"a":"rs"}},"spec":{"containers":[{"name":"c","image":"busybox"}]}}}}"#,
    ),
    (
        "statefulsets",
        r#"{"apiVersion":"apps/v1","kind":"StatefulSet","spec":{"replicas":0,"serviceName":"s","selector":{"matchLabels":{"a":"sts"}},"template":{"metadata":{"labels":{"a":"sts"}},"spec":{"containers":[{"name":"c","image":"busybox"}]}}}}"#,
    ),
    (
        "horizontalpodautoscalers",
        r#"{"apiVersion":"autoscaling/v2","kind":"HorizontalPodAutoscaler","spec":{"maxReplicas":3,"scaleTargetRef":{"apiVersion":"apps/v1","kind":"Deployment","name":"d"},"metrics":[{"type":"Resource","resource":{"name":"cpu","target":{"type":"Utilization","averageUtilization":50}}}]}}"#,
    ),
    (
        "cronjobs",
        r#"{"apiVersion":"batch/v1","kind":"CronJob","spec":{"schedule":"0 0 1 1 *","suspend":true,"jobTemplate":{"spec":{"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"busybox"}]}}}}}}"#,
    ),
    (
        "jobs",
        r#"{"apiVersion":"batch/v1","kind":"Job","spec":{"suspend":true,"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"busybox"}]}}}}"#,
    ),
    (
        "certificatesigningrequests",
        r#"{"apiVersion":"certificates.k8s.io/v1","kind":"CertificateSigningRequest","spec":{"signerName":"example.com/x","usages":["client auth"],"request":"LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlITE1ITUNBUUF3RVRFUE1BMEdBMVVFQXd3R2MyRnRjR3hsTUZrd0V3WUhLb1pJemowQ0FRWUlLb1pJemowRApBUWNEUWdBRWptMm8xdENvOVJlQ1Via0c0TW5VSHZUU0NuQ21NNWNKYm5ZMTBBVU9pUGViMXhybFhDVm03MDYrCjJuK1Vha2Q1YlNMM2JZQVlpWHEyR3RnMkI4ZVdVS0FBTUFvR0NDcUdTTTQ5QkFNQ0EwZ0FNRVVDSVFEMEIvMEUKSkp6QWRXK3B3Vm9WOXYrYXp5QUVpZVVJMVJtdUZnR2NqQ0pwMGdJZ2ZpL2tVSGU4QlUzanBxOUdVbFRoQ2ZXbQorQUg4cHhtQlVDVDlzeThJVHNBPQotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K"}}"#,
    ),
    ("leases", r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","spec":{"holderIdentity":"me"}}"#),
    (
        "endpointslices",
        r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","addressType":"IPv4","endpoints":[{"addresses":["10.9.9.9"]}],"ports":[{"name":"","port":80,"protocol":"TCP"}]}"#,
    ),
    (
        "ingressclasses",
        r#"{"apiVersion":"networking.k8s.io/v1","kind":"IngressClass","spec":{"controller":"example.com/x"}}"#,
    ),
    (
        "ingresses",
        r#"{"apiVersion":"networking.k8s.io/v1","kind":"Ingress","spec":{"defaultBackend":{"service":{"name":"s","port":{"number":80}}}}}"#,
    ),
    (
        "networkpolicies",
        r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","spec":{"podSelector":{}}}"#,
    ),
    ("runtimeclasses", r#"{"apiVersion":"node.k8s.io/v1","kind":"RuntimeClass","handler":"crun"}"#),
    (
        "poddisruptionbudgets",
        r#"{"apiVersion":"policy/v1","kind":"PodDisruptionBudget","spec":{"minAvailable":1,"selector":{"matchLabels":{"a":"pdb"}}}}"#,
    ),
    (
        "clusterroles",
        r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","rules":[{"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]}"#,
    ),
    (
        "clusterrolebindings",
        r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"sample"},"subjects":[]}"#,
    ),
    (
        "roles",
        r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"Role","rules":[{"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]}"#,
    ),
    (
        "rolebindings",
        r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"sample"},"subjects":[]}"#,
    ),
    ("priorityclasses", r#"{"apiVersion":"scheduling.k8s.io/v1","kind":"PriorityClass","value":7}"#),
    ("csidrivers", r#"{"apiVersion":"storage.k8s.io/v1","kind":"CSIDriver","spec":{}}"#),
    (
        "storageclasses",
        r#"{"apiVersion":"storage.k8s.io/v1","kind":"StorageClass","provisioner":"example.com/x"}"#,
    ),
    (
        "volumeattachments",
        r#"{"apiVersion":"storage.k8s.io/v1","kind":"VolumeAttachment","spec":{"attacher":"a","nodeName":"n","source":{"persistentVolumeName":"p"}}}"#,
    ),
];

/// The manifest with its name.
pub fn manifest(text: &str) -> serde_json::Value {
    let mut value: serde_json::Value = serde_json::from_str(text).expect("samples are JSON");
    value["metadata"] = serde_json::json!({"name": "sample", "labels": {"walk": "1"}});
    value
}
