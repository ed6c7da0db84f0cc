//! The facts, in memory. All texts are slices of the unpacked table.

/// A wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `X-Amz-Target` and JSON, 1.0 or 1.1.
    Json,
    /// Methods, paths and JSON.
    RestJson,
    /// `Action=` in a form, answers in XML.
    Query,
    /// The same with EC2's own naming.
    Ec2,
    /// Smithy's RPC v2 with CBOR bodies.
    Cbor,
}

/// What is known of a service without unpacking its table.
#[derive(Debug)]
pub struct Head {
    /// botocore's folder name: `elbv2`.
    pub name: &'static str,
    /// `2014-11-13`: the `Version` of query calls.
    pub api_version: &'static str,
    /// What it speaks, botocore's first choice first.
    pub protocols: &'static [Protocol],
    /// `1.0`, `1.1` or "".
    pub json_version: &'static str,
    /// Before the dot in `X-Amz-Target`; "" where there is none.
    pub target_prefix: &'static str,
    /// The service in the credential scope.
    pub signing_name: &'static str,
    /// First label of AWS's own host names.
    pub endpoint_prefix: &'static str,
    /// Of XML answers; "" where there are none.
    pub xml_namespace: &'static str,
    /// Errors also carry their old query form (`x-amzn-query-error`).
    pub query_compatible: bool,
    /// `Elastic Load Balancing v2`.
    pub service_id: &'static str,
}

/// A service's table.
#[derive(Debug)]
pub struct Service {
    /// Its head.
    pub head: &'static Head,
    /// Sorted by name.
    pub operations: Vec<Operation>,
    /// By [`ShapeId`], sorted by name.
    pub shapes: Vec<Shape>,
}

/// Place of a shape in its service's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShapeId(pub(crate) u32);

/// An operation.
#[derive(Debug)]
pub struct Operation {
    /// `RunTask`.
    pub name: &'static str,
    /// HTTP method.
    pub method: &'static str,
    /// Path template, query included: `/clusters/{name}`, `/tags/{key+}`.
    pub path: &'static str,
    /// Status of success.
    pub status: u16,
    /// Structure of the input, where there is one.
    pub input: Option<ShapeId>,
    /// Structure of the output, where there is one.
    pub output: Option<ShapeId>,
    /// The element around a query answer; "" where there is none.
    pub result_wrapper: &'static str,
    /// Error structures.
    pub errors: Vec<ShapeId>,
    /// What clients put before the host name, unless told not to.
    pub host_prefix: &'static str,
    /// Called without a signature.
    pub unsigned: bool,
    /// False: only the name (and the path) is known.
    pub modelled: bool,
}

/// A shape: its name, bounds and kind.
#[derive(Debug)]
pub struct Shape {
    /// Name in the model.
    pub name: &'static str,
    /// Smallest value, or length.
    pub min: Option<f64>,
    /// Largest value, or length.
    pub max: Option<f64>,
    /// What it is.
    pub kind: Kind,
}

/// What a shape is.
#[derive(Debug)]
pub enum Kind {
    /// Members by name.
    Structure(Structure),
    /// Members in order.
    List {
        /// Of each member.
        member: ShapeId,
        /// Wire name of one in query and XML; "" for the protocol's own.
        item: &'static str,
        /// No element around the members.
        flat: bool,
    },
    /// Values by text.
    Map {
        /// Of keys: a string.
        key: ShapeId,
        /// Of values.
        value: ShapeId,
        /// Wire names in query and XML; "" for the protocol's own.
        names: (&'static str, &'static str),
        /// No element around the entries.
        flat: bool,
    },
    /// Text.
    String {
        /// Regular expression that all of it must match; "" for none.
        pattern: &'static str,
        /// Allowed values; empty: any.
        values: Vec<&'static str>,
    },
    /// 32 bits.
    Integer,
    /// 64 bits.
    Long,
    /// Single precision.
    Float,
    /// Double precision.
    Double,
    /// Yes or no.
    Boolean,
    /// A point in time.
    Timestamp(TimeFormat),
    /// Bytes.
    Blob,
}

/// How a timestamp is written where that is not left to the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeFormat {
    /// As the protocol has it.
    Default,
    /// RFC 3339.
    Iso8601,
    /// Seconds since 1970.
    Unix,
    /// RFC 7231.
    Rfc822,
}

/// A structure.
#[derive(Debug, Default)]
pub struct Structure {
    /// Sorted by name.
    pub members: Vec<Member>,
    /// For errors.
    pub error: Option<Error>,
    /// At most one member is set.
    pub union: bool,
    /// Any JSON at all.
    pub document: bool,
    /// The answer is a stream of these.
    pub event_stream: bool,
    /// The member that is the HTTP body; "" where the body is the structure.
    pub payload: &'static str,
}

/// What an error looks like to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What query protocols write; the structure's name elsewhere.
    pub code: &'static str,
    /// HTTP status.
    pub status: u16,
    /// The caller's fault, not ours.
    pub sender: bool,
}

/// A member of a structure.
#[derive(Debug)]
pub struct Member {
    /// Name in the model: the document's key.
    pub name: &'static str,
    /// Its shape.
    pub shape: ShapeId,
    /// Must be set.
    pub required: bool,
    /// Where in an HTTP message (rest protocols).
    pub location: Location,
    /// Name on the wire.
    pub wire: &'static str,
    /// Name in EC2 queries; "" for the rule's.
    pub query: &'static str,
    /// Clients fill it with a random token when it is unset.
    pub token: bool,
    /// Of an event: it is the event's whole payload.
    pub payload: bool,
}

/// Where a member stands in an HTTP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// In the body.
    Body,
    /// In the path.
    Uri,
    /// In the query.
    Query,
    /// A header.
    Header,
    /// All headers with a prefix.
    Headers,
    /// The status code.
    Status,
}

impl Service {
    /// An operation by name.
    pub fn operation(&self, name: &str) -> Option<&Operation> {
        let at = self.operations.binary_search_by(|o| o.name.cmp(name)).ok()?;
        Some(&self.operations[at])
    }

    /// A shape of this service.
    pub fn shape(&self, id: ShapeId) -> &Shape {
        &self.shapes[id.0 as usize]
    }

    /// A structure of this service by its place; `None` for other kinds.
    pub fn structure(&self, id: ShapeId) -> Option<&Structure> {
        match &self.shape(id).kind {
            Kind::Structure(structure) => Some(structure),
            _ => None,
        }
    }

    /// An error by the structure's name or by its code.
    pub fn error(&self, code: &str) -> Option<(&Shape, &Error)> {
        let named = self.shapes.binary_search_by(|s| s.name.cmp(code)).ok();
        fn facts(shape: &Shape) -> Option<(&Shape, &Error)> {
            let Kind::Structure(structure) = &shape.kind else { return None };
            structure.error.as_ref().map(|error| (shape, error))
        }
        let by_code = || self.shapes.iter().filter_map(facts).find(|(_, e)| e.code == code);
        named.and_then(|at| facts(&self.shapes[at])).or_else(by_code)
    }
}

impl Structure {
    /// A member by name.
    pub fn member(&self, name: &str) -> Option<&Member> {
        let at = self.members.binary_search_by(|m| m.name.cmp(name)).ok()?;
        Some(&self.members[at])
    }
}
