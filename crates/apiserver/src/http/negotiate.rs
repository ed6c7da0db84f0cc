//! Media types: what the client wants back and what it sent.

use machinery::status::ApiError;
use stdx::accept::ranges;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object itself.
    Object,
    /// A `meta.k8s.io` Table in this version.
    Table(&'static str),
    /// Metadata only, in this version.
    Partial(&'static str),
    /// The object itself in protobuf: only for those who take nothing else, because JSON is what is stored.
    Protobuf,
    /// Metadata only in protobuf, in this version: likewise.
    PartialProtobuf(&'static str),
}

impl Form {
    /// Content type of an answer in this form.
    pub fn content_type(self, list: bool) -> String {
        match self {
            Form::Object => "application/json".into(),
            Form::Protobuf | Form::PartialProtobuf(_) => PROTOBUF.into(),
            Form::Table(v) => format!("application/json;as=Table;v={v};g=meta.k8s.io"),
            Form::Partial(v) => {
                let kind = if list { "PartialObjectMetadataList" } else { "PartialObjectMetadata" };
                format!("application/json;as={kind};v={v};g=meta.k8s.io")
            }
        }
    }

    /// Content type of a watch in this form.
    pub fn watch_content_type(self) -> &'static str {
        if self.is_protobuf() { WATCH_PROTOBUF } else { "application/json" }
    }

    /// Is it no JSON?
    pub fn is_protobuf(self) -> bool {
        matches!(self, Form::Protobuf | Form::PartialProtobuf(_))
    }
}

/// The format of a request body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

/// Does the client want protobuf before anything else?
pub fn prefers_protobuf(accept: &str) -> bool {
    ranges(accept).first().is_some_and(|(media, _)| *media == PROTOBUF)
}

/// What Go clients send built-in kinds as.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const WATCH_PROTOBUF: &str = "application/vnd.kubernetes.protobuf;stream=watch";

fn meta_version(version: Option<&str>) -> Option<&'static str> {
    match version {
        Some("v1") | None => Some("v1"),
        Some("v1beta1") => Some("v1beta1"),
        Some(_) => None,
    }
}

/// 406 in Kubernetes' words.
pub fn not_acceptable() -> ApiError {
    ApiError::new(
        406,
        "NotAcceptable",
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf",
    )
}

/// Is YAML what the client likes best? The answer is then made as JSON, and rewritten as the last step.
pub fn wants_yaml(accept: &str) -> bool {
    let known =
        |media: &str| matches!(media, "application/yaml" | "application/json" | "application/*" | "*/*");
    ranges(accept).iter().map(|(media, _)| *media).find(|media| known(media)) == Some("application/yaml")
}

/// The form of the answer. `tables`: does the resource have a table form? A stream comes in JSON or protobuf only.
pub fn form(accept: &str, tables: bool, stream: bool) -> Result<Form, ApiError> {
    if accept.trim().is_empty() {
        return Ok(Form::Object);
    }
    let mut protobuf = None;
    for (media, parameters) in ranges(accept) {
        let get = |key: &str| parameters.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        if media == PROTOBUF {
            let form = match get("as") {
                None => Some(Form::Protobuf),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList")
                    if tables && get("g").is_none_or(|g| g == "meta.k8s.io") =>
                {
                    meta_version(get("v")).map(Form::PartialProtobuf)
                }
                Some(_) => None,
            };
            protobuf = protobuf.or(form);
        }
        let yaml = media == "application/yaml" && !stream;
        if !yaml && !matches!(media, "application/json" | "application/*" | "*/*") {
            continue;
        }
        let meta = get("g").is_none_or(|g| g == "meta.k8s.io");
        match get("as") {
            None => return Ok(Form::Object),
            Some("Table") if meta && tables => {
                if let Some(version) = meta_version(get("v")) {
                    return Ok(Form::Table(version));
                }
            }
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") if meta && tables => {
                if let Some(version) = meta_version(get("v")) {
                    return Ok(Form::Partial(version));
                }
            }
            Some(_) => {}
        }
    }
    protobuf.ok_or_else(not_acceptable)
}

/// 415 in Kubernetes' words.
pub fn unsupported(accepted: &str) -> ApiError {
    ApiError::new(
        415,
        "UnsupportedMediaType",
        format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        ),
    )
}

/// The format of a body.
pub fn format(content_type: &str) -> Result<Format, ApiError> {
    match media_type(content_type) {
        // Go clients send no type with an empty DeleteOptions.
        "" | "application/json" => Ok(Format::Json),
        "application/yaml" => Ok(Format::Yaml),
        PROTOBUF => Ok(Format::Protobuf),
        _ => Err(unsupported("application/json, application/yaml, application/vnd.kubernetes.protobuf")),
    }
}

/// A media type without its parameters.
pub fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        for (accept, want) in [
            ("", Some(Form::Object)),
            ("*/*", Some(Form::Object)),
            (kubectl, Some(Form::Table("v1"))),
            ("application/json;as=Table;g=meta.k8s.io;v=v1beta1", Some(Form::Table("v1beta1"))),
            ("application/json;as=Table;g=meta.k8s.io;v=v2, application/json", Some(Form::Object)),
            ("application/json;as=Table;g=meta.k8s.io;v=v2", None),
            ("application/vnd.kubernetes.protobuf, application/json", Some(Form::Object)),
            ("application/vnd.kubernetes.protobuf", Some(Form::Protobuf)),
            ("application/vnd.kubernetes.protobuf;stream=watch", Some(Form::Protobuf)),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", None),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
                Some(Form::PartialProtobuf("v1")),
            ),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some(Form::Partial("v1"))),
            ("text/html;q=0.9, application/json;q=0.1", Some(Form::Object)),
            ("application/json;q=0", None),
            ("application/yaml;as=Table;g=meta.k8s.io;v=v1", Some(Form::Table("v1"))),
        ] {
            assert_eq!(form(accept, true, false).ok(), want, "{accept}");
        }
        assert_eq!(form("application/json;as=Table;v=v1;g=meta.k8s.io", false, false).unwrap_err().code, 406);
        assert_eq!(form("application/yaml", true, false), Ok(Form::Object));
        assert_eq!(form("application/yaml", true, true).unwrap_err().code, 406);
        assert!(wants_yaml("text/html, application/yaml, */*") && wants_yaml("application/yaml;as=Table"));
        assert!(!wants_yaml("*/*, application/yaml;q=0.5") && !wants_yaml(""));
    }

    #[test]
    fn formats() {
        assert_eq!(format("application/json; charset=utf-8"), Ok(Format::Json));
        assert_eq!(format("application/yaml"), Ok(Format::Yaml));
        assert_eq!(format("application/vnd.kubernetes.protobuf"), Ok(Format::Protobuf));
        assert_eq!(format("application/cbor").unwrap_err().code, 415);
    }
}
