//! Temporary credentials: given out by STS, good until their end, and only whole.

use super::world::{ACCOUNT, Ask, NOW, Signing, World, world};
use auth::tokens::{Bound, Claims, Reference, account_user};
use k8s_schema::gvr::SERVICE_ACCOUNTS;
use serde_json::json;
use std::sync::atomic::Ordering;

fn between(text: &str, tag: &str) -> String {
    let rest = text.split_once(&format!("<{tag}>")).map(|(_, rest)| rest);
    let value = rest.and_then(|rest| rest.split_once(&format!("</{tag}>")));
    value.map(|(value, _)| value.to_string()).unwrap_or_else(|| panic!("no {tag}: {text}"))
}

fn credentials(text: &str) -> Signing {
    Signing {
        key: between(text, "AccessKeyId"),
        secret: between(text, "SecretAccessKey"),
        token: Some(between(text, "SessionToken")),
        service: "sts",
        at: NOW,
    }
}

async fn role(world: &World, name: &str) {
    let made = world
        .query(
            "iam",
            &format!("Action=CreateRole&Version=2010-05-08&RoleName={name}&AssumeRolePolicyDocument=%7B%7D"),
        )
        .await;
    assert_eq!(made.status, 200, "{}", made.text());
}

const WHO: &str = "Action=GetCallerIdentity&Version=2011-06-15";

#[tokio::test]
async fn a_role_is_assumed_until_its_end() {
    let world = world().await;
    role(&world, "web").await;
    let assume = |role: &str, more: &str| {
        let arn = format!("arn:aws:iam::{ACCOUNT}:role/{role}");
        format!("Action=AssumeRole&Version=2011-06-15&RoleArn={arn}&RoleSessionName=s1{more}")
    };
    let given = world.query("sts", &assume("web", "&DurationSeconds=900")).await;
    assert_eq!(given.status, 200, "{}", given.text());
    let signing = credentials(&given.text());
    let who = world.ask(&signing, &Ask::form(WHO)).await.text();
    assert!(who.contains(&format!("arn:aws:sts::{ACCOUNT}:assumed-role/web/s1")), "{who}");

    let bare = world.ask(&Signing { token: None, ..signing.clone() }, &Ask::form(WHO)).await;
    assert!(bare.status == 403 && bare.text().contains("InvalidClientTokenId"), "{}", bare.text());
    let other = world.query("sts", &assume("web", "")).await.text();
    let mixed = Signing { token: credentials(&other).token, ..signing.clone() };
    assert_eq!(world.ask(&mixed, &Ask::form(WHO)).await.status, 403);

    world.now.store((NOW as u64 + 900) * 1_000, Ordering::Relaxed);
    let late = world.ask(&Signing { at: NOW + 900, ..signing }, &Ask::form(WHO)).await;
    assert!(late.status == 403 && late.text().contains("<Code>ExpiredToken<"), "{}", late.text());

    world.now.store(NOW as u64 * 1_000, Ordering::Relaxed);
    let none = world.query("sts", &assume("nobody", "")).await;
    assert!(
        none.status == 403 && none.text().contains("is not authorized to perform: sts:AssumeRole"),
        "{none:?}"
    );
    let long = world.query("sts", &assume("web", "&DurationSeconds=7200")).await.text();
    assert!(long.contains("exceeds the MaxSessionDuration"), "{long}");
}

#[tokio::test]
async fn a_service_account_becomes_a_role_without_a_signature() {
    let world = world().await;
    role(&world, "pod").await;
    let body = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": "aws", "name": "app"}});
    let account = world.client.create(&SERVICE_ACCOUNTS, body).await.unwrap();
    let claims = |audience: &str, uid: &str, exp: i64| Claims {
        aud: vec![audience.into()],
        exp,
        iat: NOW - 10,
        nbf: NOW - 10,
        iss: "https://issuer".into(),
        jti: "j".into(),
        sub: account_user("aws", "app"),
        bound: Bound {
            namespace: "aws".into(),
            serviceaccount: Reference { name: "app".into(), uid: uid.into() },
            ..Bound::default()
        },
    };
    let ask = |claims: Claims| {
        let token = world.tokens.sign(&claims).unwrap();
        let form = format!(
            "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=arn:aws:iam::{ACCOUNT}:role/pod\
             &RoleSessionName=app&WebIdentityToken={token}"
        );
        world.send_later(form)
    };
    let good = ask(claims("sts.amazonaws.com", account.uid(), NOW + 600)).await;
    assert_eq!(good.status, 200, "{}", good.text());
    assert!(
        good.text().contains("<SubjectFromWebIdentityToken>system:serviceaccount:aws:app<"),
        "{}",
        good.text()
    );
    let who = world.ask(&credentials(&good.text()), &Ask::form(WHO)).await.text();
    assert!(who.contains("assumed-role/pod/app"), "{who}");
    for (claims, words) in [
        (claims("other", account.uid(), NOW + 600), "Incorrect token audience"),
        (claims("sts.amazonaws.com", "another", NOW + 600), "InvalidIdentityToken"),
        (claims("sts.amazonaws.com", account.uid(), NOW - 1), "ExpiredToken"),
    ] {
        let answer = ask(claims).await;
        assert!(answer.status == 400 && answer.text().contains(words), "{}", answer.text());
    }
}

impl World {
    /// An unsigned form.
    async fn send_later(&self, form: String) -> super::world::Answer {
        self.send(&Ask::form(&form)).await
    }
}
