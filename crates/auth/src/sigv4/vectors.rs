//! Requests signed by botocore 1.44.5 (SigV4Auth, SigV4QueryAuth) at 2026-11-20T12:00:00Z with the tests' secret.

pub(super) struct Vector {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) query: &'static str,
    pub(super) headers: &'static [(&'static str, &'static str)],
    pub(super) body: &'static str,
}

pub(super) const VECTORS: &[Vector] = &[
    Vector {
        method: "POST",
        path: "/",
        query: "",
        headers: &[
            ("host", "127.0.0.1:4566"),
            ("x-amz-target", "AmazonEC2ContainerServiceV20141113.ListClusters"),
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-date", "20261120T120000Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261120/us-east-1/ecs/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature=3001e9675db83f932353cf5ffa9d9d5f4543e1a985e03c8bf80c633cfcd07b33",
            ),
            ("content-length", "2"),
        ],
        body: "{}",
    },
    Vector {
        method: "POST",
        path: "/",
        query: "",
        headers: &[
            ("host", "127.0.0.1:4566"),
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
            ("x-amz-date", "20261120T120000Z"),
            ("x-amz-security-token", "tok/en+=="),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261120/us-east-1/sts/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, Signature=d05aa69b6558e8bbcd2979d2a24bf60f24d63405a7398c064a0ffbff021c1511",
            ),
            ("content-length", "43"),
        ],
        body: "Action=GetCallerIdentity&Version=2011-06-15",
    },
    Vector {
        method: "GET",
        path: "/clusters/a%20b/node-groups",
        query: "maxResults=5&x=a%20b%2Fc&x=%C3%A9&empty",
        headers: &[
            ("host", "localhost:4566"),
            ("x-weird", "  a   b "),
            ("x-amz-date", "20261120T120000Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261120/us-east-1/eks/aws4_request, SignedHeaders=host;x-amz-date;x-weird, Signature=fcf2c7b8b279475e160d1d7f59d5cd13114d7ab64b647c83391735b2625c61da",
            ),
        ],
        body: "",
    },
    Vector {
        method: "DELETE",
        path: "/tags/arn%3Aaws%3Aeks%3Aus-east-1%3A123456789012%3Acluster%2Fx",
        query: "tagKeys=b&tagKeys=a",
        headers: &[
            ("host", "localhost:4566"),
            ("x-amz-date", "20261120T120000Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261120/us-east-1/eks/aws4_request, SignedHeaders=host;x-amz-date, Signature=3751bebf3b430443fae5088666d43da97d518f8dbc27f697b6e2a4f510dedc5d",
            ),
            ("content-length", "0"),
        ],
        body: "",
    },
    Vector {
        method: "GET",
        path: "/",
        query: "Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20261120%2Fus-east-1%2Fsts%2Faws4_request&X-Amz-Date=20261120T120000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host%3Bx-k8s-aws-id&X-Amz-Signature=09978a077062bec7a290b8a6143c1cdb69595a8f2729421ae23ce312400ed80f",
        headers: &[("host", "localhost:4566"), ("x-k8s-aws-id", "prod")],
        body: "",
    },
    Vector {
        method: "GET",
        path: "/",
        query: "Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20261120%2Fus-east-1%2Fsts%2Faws4_request&X-Amz-Date=20261120T120000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host%3Bx-k8s-aws-id&X-Amz-Security-Token=t%2B%2F%3D&X-Amz-Signature=2a01a304d90384681d1814b46ad4d35e3c5973696bdf6e424cb71741b5a5f231",
        headers: &[("host", "localhost:4566"), ("x-k8s-aws-id", "prod")],
        body: "",
    },
    Vector {
        method: "POST",
        path: "/",
        query: "",
        headers: &[
            ("host", "127.0.0.1:4566"),
            ("x-amz-target", "x.y"),
            ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
            ("x-amz-date", "20261120T120000Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261120/us-east-1/logs/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-target, Signature=84ded092c856b7b2db09e5022838835ea5d9d2d1b6f45f0695f3a9b72bd8f915",
            ),
            ("content-length", "8"),
        ],
        body: "streamed",
    },
];
