//! Values encrypted at rest: a store over another one that seals what its rules name and opens whatever is sealed.
//!
//! A sealed value begins with `k8s:enc:<kind>:v1:<key's name>:`, as upstream's do, so that a value says how it is read;
//! everything else is taken as it is (values from before). The key of the record is authenticated with the value: a
//! value that was moved to another key does not open. Revisions, watches and compare-and-swap are the inner store's.
//! Invariant: a value that cannot be opened is an error that names the key it wants, never an absent record.
//! Deliberately not here: configuration files, key files.

use crate::{
    Event, Expect, Range, RangeOptions, Record, Revision, Store, StoreError, Txn, TxnOp, TxnOutcome, Watch,
    WatchError,
};
use async_trait::async_trait;
use bytes::Bytes;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use std::sync::Arc;
use tokio::sync::mpsc;

/// What sealed values begin with.
const MARK: &[u8] = b"k8s:enc:";
/// Random bytes that a value's own key is derived from.
const SALT_LEN: usize = 16;
/// Records read at a time when old values are sealed anew.
const PAGE: usize = 200;
/// Batches of a watch between this store and the inner one, which bounds what a slow reader is behind.
const WATCH_BATCHES: usize = 1;

enum Cipher {
    /// Upstream's `aesgcm`: the key itself, a random nonce a value.
    Direct(Box<LessSafeKey>),
    /// Gantry's own: a key of its own for every value, so that random nonces never run out.
    Derived(hmac::Key),
}

/// A key with its name.
pub struct SealKey {
    head: String,
    cipher: Cipher,
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.head)
    }
}

impl SealKey {
    /// Upstream's provider `aesgcm`. `None`: the secret has neither 16 nor 32 bytes.
    pub fn aesgcm(name: &str, secret: &[u8]) -> Option<SealKey> {
        let algorithm = match secret.len() {
            16 => &AES_128_GCM,
            32 => &AES_256_GCM,
            _ => return None,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, secret).ok()?);
        Some(SealKey { head: format!("k8s:enc:aesgcm:v1:{name}:"), cipher: Cipher::Direct(Box::new(key)) })
    }

    /// Gantry's own envelope (AES-256-GCM).
    pub fn envelope(name: &str, secret: &[u8; 32]) -> SealKey {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        SealKey { head: format!("k8s:enc:gantry:v1:{name}:"), cipher: Cipher::Derived(key) }
    }

    /// A text that only this key makes of another: tells whether two servers have the same key.
    pub fn fingerprint(&self) -> String {
        let tag = match &self.cipher {
            Cipher::Derived(key) => hmac::sign(key, b"fingerprint"),
            Cipher::Direct(_) => return self.head.clone(),
        };
        tag.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The key of one value, and how many bytes of salt stand before its nonce.
    fn of_value(&self, salt: &[u8]) -> Option<LessSafeKey> {
        match &self.cipher {
            Cipher::Direct(key) => Some((**key).clone()),
            Cipher::Derived(key) => {
                let derived = hmac::sign(key, &[b"value", salt].concat());
                Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, derived.as_ref()).ok()?))
            }
        }
    }

    fn salt_len(&self) -> usize {
        if matches!(self.cipher, Cipher::Derived(_)) { SALT_LEN } else { 0 }
    }

    fn seal(&self, key: &str, value: &[u8], random: &SystemRandom) -> Option<Bytes> {
        let mut fresh = vec![0; self.salt_len() + NONCE_LEN];
        random.fill(&mut fresh).ok()?;
        let (salt, nonce) = fresh.split_at(self.salt_len());
        let cipher = self.of_value(salt)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = value.to_vec();
        cipher.seal_in_place_append_tag(nonce, Aad::from(key.as_bytes()), &mut text).ok()?;
        Some([self.head.as_bytes(), &fresh, &text].concat().into())
    }

    fn open(&self, key: &str, value: &[u8]) -> Option<Bytes> {
        let body = value.strip_prefix(self.head.as_bytes())?;
        let (salt, body) = body.split_at_checked(self.salt_len())?;
        let (nonce, text) = body.split_at_checked(NONCE_LEN)?;
        let cipher = self.of_value(salt)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = text.to_vec();
        let length = cipher.open_in_place(nonce, Aad::from(key.as_bytes()), &mut text).ok()?.len();
        text.truncate(length);
        Some(text.into())
    }
}

/// Which values are sealed, and by which key.
#[derive(Clone, Debug)]
pub struct SealRule {
    /// API group; "" is the core group, `*` any.
    pub group: String,
    /// Resource; `*` any.
    pub resource: String,
    /// `None`: left as it is.
    pub key: Option<Arc<SealKey>>,
}

/// A store that seals.
pub struct Sealed {
    inner: Arc<dyn Store>,
    opener: Arc<Opener>,
    /// The first that fits counts.
    rules: Vec<SealRule>,
    random: SystemRandom,
}

/// What opens values.
struct Opener(Vec<Arc<SealKey>>);

impl Opener {
    fn value(&self, key: &str, value: Bytes) -> Result<Bytes, StoreError> {
        if !value.starts_with(MARK) {
            return Ok(value);
        }
        if let Some(open) = self.0.iter().find_map(|k| k.open(key, &value)) {
            return Ok(open);
        }
        let known = self.0.iter().any(|k| value.starts_with(k.head.as_bytes()));
        let ends =
            value.iter().enumerate().filter(|(_, b)| **b == b':').nth(4).map_or(MARK.len(), |(at, _)| at);
        let head = String::from_utf8_lossy(&value[..ends]).into_owned();
        let why = match known {
            true => "that key is another one now",
            false => "that key is not configured",
        };
        Err(StoreError::Engine(format!("the value at {key} is encrypted ({head}) and cannot be read: {why}")))
    }

    fn record(&self, record: Record) -> Result<Record, StoreError> {
        let value = self.value(&record.key, record.value)?;
        Ok(Record { value, ..record })
    }

    fn maybe(&self, record: Option<Record>) -> Result<Option<Record>, StoreError> {
        record.map(|r| self.record(r)).transpose()
    }

    fn event(&self, event: Event) -> Result<Event, StoreError> {
        let (record, previous) = (self.maybe(event.record)?, self.maybe(event.previous)?);
        Ok(Event { record, previous, ..event })
    }

    /// What a watch passes on.
    fn batch(&self, batch: Result<Vec<Event>, WatchError>) -> Result<Vec<Event>, WatchError> {
        let opened: Result<Vec<Event>, StoreError> = batch?.into_iter().map(|e| self.event(e)).collect();
        // Whoever watches lists again then, and is told.
        opened.map_err(|error| {
            tracing::error!(%error, "a watch ends");
            WatchError::TooSlow
        })
    }
}

impl Sealed {
    /// Over a store: `rules` say what is sealed; `keys` open, beside those of the rules.
    pub fn new(inner: Arc<dyn Store>, rules: Vec<SealRule>, keys: Vec<Arc<SealKey>>) -> Sealed {
        let of_rules = rules.iter().filter_map(|r| r.key.clone());
        let opener = Arc::new(Opener(of_rules.chain(keys).collect()));
        Sealed { inner, opener, rules, random: SystemRandom::new() }
    }

    /// The rule for a key `/<realm>/<group or core>/<resource>/…`.
    fn rule(&self, key: &str) -> Option<&SealRule> {
        let mut parts = key.split('/').skip(2);
        let (group, resource) = (parts.next()?, parts.next()?);
        let group = if group == "core" { "" } else { group };
        let fits = |wanted: &str, is: &str| wanted == "*" || wanted == is;
        self.rules.iter().find(|r| fits(&r.group, group) && fits(&r.resource, resource))
    }

    fn sealed(&self, key: &str, value: Bytes) -> Result<Bytes, StoreError> {
        let Some(seal) = self.rule(key).and_then(|r| r.key.as_ref()) else { return Ok(value) };
        let failed = || StoreError::Engine("no random numbers to encrypt a value with".into());
        seal.seal(key, &value, &self.random).ok_or_else(failed)
    }

    /// Is a stored value as the rules want it?
    fn is_current(&self, key: &str, value: &[u8]) -> bool {
        match self.rule(key) {
            None => true,
            Some(SealRule { key: Some(seal), .. }) => value.starts_with(seal.head.as_bytes()),
            Some(_) => !value.starts_with(MARK),
        }
    }

    /// Writes anew what is stored otherwise than the rules want it, and says how many values that were. Others may
    /// write meanwhile: their values are right already.
    ///
    /// # Errors
    /// The store, or a value that cannot be opened.
    pub async fn renew(&self, realm: &str) -> Result<usize, StoreError> {
        let mut renewed = 0;
        let mut options = RangeOptions { limit: PAGE, ..RangeOptions::default() };
        loop {
            let page = self.inner.range(&format!("/{realm}/"), options.clone()).await?;
            for record in page.records.iter().filter(|r| !self.is_current(&r.key, &r.value)) {
                let plain = self.opener.value(&record.key, record.value.clone())?;
                let op = TxnOp::Put(plain);
                let txn = Txn { key: record.key.clone(), expect: Expect::Modified(record.modified), op };
                renewed += usize::from(matches!(self.txn(txn).await?, TxnOutcome::Done { .. }));
            }
            let Some(last) = page.records.last().filter(|_| page.remaining > 0) else { return Ok(renewed) };
            options = RangeOptions { after: Some(last.key.clone()), at: Some(page.revision), limit: PAGE };
        }
    }
}

#[async_trait]
impl Store for Sealed {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Record>, StoreError> {
        self.opener.maybe(self.inner.get(key, at).await?)
    }

    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Range, StoreError> {
        let range = self.inner.range(prefix, options).await?;
        let records = range.records.into_iter().map(|r| self.opener.record(r)).collect::<Result<_, _>>()?;
        Ok(Range { records, ..range })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let op = match txn.op {
            TxnOp::Put(value) => TxnOp::Put(self.sealed(&txn.key, value)?),
            TxnOp::Delete => TxnOp::Delete,
        };
        Ok(match self.inner.txn(Txn { op, ..txn }).await? {
            // The write is made: that what stood there cannot be read must not make it look failed.
            TxnOutcome::Done { revision, previous } => {
                TxnOutcome::Done { revision, previous: self.opener.maybe(previous).unwrap_or_default() }
            }
            TxnOutcome::Conflict(record) => TxnOutcome::Conflict(self.opener.maybe(record)?),
        })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError> {
        let mut inner = self.inner.watch(prefix, after).await?;
        let (out, events) = mpsc::channel(WATCH_BATCHES);
        let opener = self.opener.clone();
        tokio::spawn(async move {
            loop {
                let batch = tokio::select! {
                    batch = inner.events.recv() => batch,
                    () = out.closed() => return,
                };
                let Some(batch) = batch else { return };
                let batch = opener.batch(batch);
                let ends = batch.is_err();
                if out.send(batch).await.is_err() || ends {
                    return;
                }
            }
        });
        Ok(Watch { events })
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.inner.revision().await
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Embedded, EmbeddedOptions};

    const SECRET: &str = "/main/core/secrets/ns/a";
    const MAP: &str = "/main/core/configmaps/ns/a";

    fn key(fill: u8) -> Arc<SealKey> {
        Arc::new(SealKey::aesgcm(&format!("k{fill}"), &[fill; 32]).unwrap())
    }

    fn rules(key: Option<Arc<SealKey>>) -> Vec<SealRule> {
        vec![SealRule { group: String::new(), resource: "secrets".into(), key }]
    }

    async fn put(store: &dyn Store, key: &str, value: &'static [u8]) {
        let txn = Txn { key: key.into(), expect: Expect::Any, op: TxnOp::Put(Bytes::from_static(value)) };
        assert!(matches!(store.txn(txn).await.unwrap(), TxnOutcome::Done { .. }));
    }

    async fn value(store: &dyn Store, key: &str) -> Result<Bytes, StoreError> {
        Ok(store.get(key, None).await?.unwrap().value)
    }

    #[tokio::test]
    async fn values_are_sealed_opened_and_sealed_anew() {
        let folder = tempfile::tempdir().unwrap();
        let inner: Arc<dyn Store> =
            Arc::new(Embedded::open(&folder.path().join("s"), EmbeddedOptions::default()).unwrap());
        put(&*inner, SECRET, b"{\"old\":1}").await;
        let store = Sealed::new(inner.clone(), rules(Some(key(1))), Vec::new());
        assert_eq!(value(&store, SECRET).await.unwrap(), "{\"old\":1}");
        let mut watch = store.watch("/main/", Revision(0)).await.unwrap();
        put(&store, MAP, b"{}").await;
        put(&store, SECRET, b"{\"new\":1}").await;
        let raw = value(&*inner, SECRET).await.unwrap();
        assert!(raw.starts_with(b"k8s:enc:aesgcm:v1:k1:") && !raw.windows(3).any(|w| w == b"new"), "{raw:?}");
        assert_eq!(value(&*inner, MAP).await.unwrap(), "{}");
        assert_eq!(value(&store, SECRET).await.unwrap(), "{\"new\":1}");
        let mut seen = Vec::new();
        while seen.len() < 3 {
            seen.extend(watch.events.recv().await.unwrap().unwrap());
        }
        assert_eq!(seen[2].record.as_ref().unwrap().value, "{\"new\":1}");
        assert_eq!(
            seen[2].previous.as_ref().map(|r| r.value.clone()),
            Some(Bytes::from_static(b"{\"old\":1}"))
        );

        // Another key first: the old one opens until everything is written anew.
        let turned = Sealed::new(inner.clone(), rules(Some(key(2))), vec![key(1)]);
        assert_eq!((turned.renew("main").await, turned.renew("main").await), (Ok(1), Ok(0)));
        let error = value(&store, SECRET).await.unwrap_err().to_string();
        assert!(error.contains("k8s:enc:aesgcm:v1:k2") && error.contains("not configured"), "{error}");
        let wrong = Arc::new(SealKey::aesgcm("k2", &[9; 32]).unwrap());
        let wrong = Sealed::new(inner.clone(), rules(Some(wrong)), Vec::new());
        assert!(
            wrong
                .range("/main/", RangeOptions::default())
                .await
                .unwrap_err()
                .to_string()
                .contains("another one")
        );
        // A value that is moved does not open; identity writes it plainly.
        let moved = value(&*inner, SECRET).await.unwrap();
        let txn =
            Txn { key: "/main/core/secrets/ns/b".into(), expect: Expect::Absent, op: TxnOp::Put(moved) };
        inner.txn(txn).await.unwrap();
        assert!(turned.get("/main/core/secrets/ns/b", None).await.is_err());
        let txn = Txn { key: "/main/core/secrets/ns/b".into(), expect: Expect::Any, op: TxnOp::Delete };
        turned.txn(txn).await.unwrap();
        let plain = Sealed::new(inner.clone(), rules(None), vec![key(2)]);
        assert_eq!(plain.renew("main").await, Ok(1));
        assert_eq!(value(&*inner, SECRET).await.unwrap(), "{\"new\":1}");
    }

    #[test]
    fn every_value_of_an_envelope_has_a_key_of_its_own() {
        let (random, seal) = (SystemRandom::new(), SealKey::envelope("1", &[7; 32]));
        let one = seal.seal("k", b"text", &random).unwrap();
        assert_ne!(one, seal.seal("k", b"text", &random).unwrap());
        assert_eq!(seal.open("k", &one).unwrap(), "text");
        let mut bent = one.to_vec();
        *bent.last_mut().unwrap() ^= 1;
        assert_eq!(
            (seal.open("k", &bent), seal.open("l", &one), seal.open("k", &one[..20])),
            (None, None, None)
        );
        assert!(SealKey::aesgcm("a", &[0; 24]).is_none());
        assert_ne!(seal.fingerprint(), SealKey::envelope("1", &[8; 32]).fingerprint());
    }
}
