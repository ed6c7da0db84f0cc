//! `/statusz` and `/flagz` of the API server: who asks how, and the answer (their words are `machinery`'s).

use super::Inbound;
use super::negotiate::not_acceptable;
use super::respond::{self, Body};
use crate::Api;
use ::http::{Response, header};
use machinery::status::ApiError;
use machinery::zpages::{self, Answer, Page};

const COMPONENT: &str = "kube-apiserver";

fn answer(inbound: &Inbound, page: Page) -> Result<Response<Body>, ApiError> {
    match page.answer(inbound.header(header::ACCEPT)).ok_or_else(not_acceptable)? {
        Answer::Text(text) => Ok(respond::raw(200, "text/plain; charset=utf-8", respond::full(text))),
        Answer::Document(fields, warning) => {
            let mut response = respond::json_value(200, "application/json", &fields, inbound.wishes());
            respond::warn(&mut response, warning.as_slice());
            Ok(response)
        }
    }
}

/// `/statusz`; `paths` are those that the server's index names.
pub(super) fn status(api: &Api, inbound: &Inbound, paths: &[String]) -> Result<Response<Body>, ApiError> {
    // The first parts alone.
    let mut roots: Vec<String> =
        paths.iter().filter_map(|p| p.split('/').nth(1)).map(|root| format!("/{root}")).collect();
    roots.dedup();
    answer(inbound, zpages::status(COMPONENT, api.started, (api.config.clock)(), &roots))
}

/// `/flagz`.
pub(super) fn flags(api: &Api, inbound: &Inbound) -> Result<Response<Body>, ApiError> {
    answer(inbound, zpages::flags(COMPONENT, &api.config.flags))
}
