//! A bucket of NATS that the nodes of one shop share: small values by name, one for each, as its key-value stores have it
//! (so its own tools can read it).
//!
//! Reads with `newest` and `next` are the stream leader's word; those with `glance` may be any replica's, and old. A
//! write that was not heard of may have been stored, so each is one that may be repeated: `create` by whoever reads back
//! what is there, `put` by whoever only ever wants the newest.

use std::time::Duration;

use async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
use async_nats::jetstream::context::{
    Context, ContextBuilder, CreateStreamErrorKind, GetStreamErrorKind, PublishError, PublishErrorKind,
};
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{
    Config, DeleteStatus, DirectGetErrorKind, DiscardPolicy, RawMessageErrorKind, Republish, StorageType, Stream,
};
use async_nats::{Client, HeaderMap, Subscriber};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::time::Instant;

use super::jetstream::NO_PEERS;
use super::journal::EntityKey;
use super::token;

/// How long one request may take.
const REQUEST_MS: u64 = 2_000;
/// How long one is made again whose outcome is not known: about as long as an election takes.
const AGAIN_MS: u64 = 5_000;
/// The first pause in between; each is twice the one before, and up to half of it more.
const PAUSE_MS: u64 = 25;
const PAUSE_MAX_MS: u64 = 400;
/// How long a start waits for JetStream, which may be electing.
const OPEN_MS: u64 = 30_000;
const OPEN_PAUSE_MS: u64 = 500;
/// Nothing here is told twice from one by a message id, and the server keeps ids in memory for so long.
const DUPLICATE_WINDOW_MS: u64 = 1_000;

#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// Whether it was done is unknown.
    #[error("NATS does not answer for the bucket {bucket}: {what}")]
    Unreachable { bucket: String, what: String },
    #[error("NATS refuses it for the bucket {bucket}: {what}")]
    Refused { bucket: String, what: String },
    #[error(
        "the bucket {bucket} has {setting} {is}, and should have {should}: change it, or delete the bucket if it is not this shop's"
    )]
    Setting { bucket: String, setting: &'static str, is: String, should: String },
}

impl BucketError {
    pub fn is_transient(&self) -> bool {
        matches!(self, BucketError::Unreachable { .. })
    }
}

/// What a bucket is to be like.
#[derive(Debug, Clone)]
pub struct BucketOptions {
    pub name: String,
    pub description: String,
    /// Servers that hold it.
    pub replicas: usize,
    /// Whether any replica may answer a read.
    pub glances: bool,
    /// Where each change is told of, without its value, once it is stored.
    pub notices: Option<String>,
}

impl BucketOptions {
    fn config(&self) -> Config {
        let source = format!("$KV.{}.>", self.name);
        Config {
            name: format!("KV_{}", self.name),
            description: Some(self.description.clone()),
            subjects: vec![source.clone()],
            max_messages: -1,
            max_bytes: -1,
            max_consumers: -1,
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            num_replicas: self.replicas,
            duplicate_window: Duration::from_millis(DUPLICATE_WINDOW_MS),
            allow_direct: self.glances,
            republish: self.notices.as_ref().map(|subject| Republish {
                source,
                destination: format!("{subject}.>"),
                headers_only: true,
            }),
            ..Config::default()
        }
    }

    fn check(&self, is: &Config) -> Result<(), BucketError> {
        let should = self.config();
        let republish = |config: &Config| config.republish.as_ref().map(|told| (told.destination.clone(), told.headers_only));
        let settings = [
            ("subjects", format!("{:?}", is.subjects), format!("{:?}", should.subjects)),
            ("storage", format!("{:?}", is.storage), format!("{:?}", should.storage)),
            ("retention", format!("{:?}", is.retention), format!("{:?}", should.retention)),
            ("max_msgs_per_subject", is.max_messages_per_subject.to_string(), should.max_messages_per_subject.to_string()),
            ("max_msgs", is.max_messages.to_string(), should.max_messages.to_string()),
            ("max_bytes", is.max_bytes.to_string(), should.max_bytes.to_string()),
            ("max_age", format!("{:?}", is.max_age), format!("{:?}", should.max_age)),
            ("deny_delete", is.deny_delete.to_string(), should.deny_delete.to_string()),
            ("allow_direct", is.allow_direct.to_string(), should.allow_direct.to_string()),
            ("republish", format!("{:?}", republish(is)), format!("{:?}", republish(&should))),
            ("persist_mode", format!("{:?}", is.persist_mode.is_some()), format!("{:?}", false)),
            ("sealed", is.sealed.to_string(), should.sealed.to_string()),
        ];
        let wrong = settings.into_iter().find(|(_, is, should)| is != should);
        let wrong = wrong.or_else(|| {
            let (is, should) = (is.num_replicas, should.num_replicas);
            (is < should).then(|| ("num_replicas", is.to_string(), format!("{should} or more")))
        });
        match wrong {
            None => Ok(()),
            Some((setting, is, should)) => Err(BucketError::Setting { bucket: self.name.clone(), setting, is, should }),
        }
    }
}

pub struct Bucket {
    context: Context,
    stream: Stream<()>,
    name: String,
}

impl Bucket {
    /// Opens the bucket, making it if it is missing. Waits for a JetStream that is electing.
    pub async fn open(client: &Client, options: &BucketOptions) -> Result<Bucket, BucketError> {
        Bucket::opened(client, options, true).await
    }

    /// The same for whoever may not make it.
    pub async fn open_existing(client: &Client, options: &BucketOptions) -> Result<Bucket, BucketError> {
        Bucket::opened(client, options, false).await
    }

    async fn opened(client: &Client, options: &BucketOptions, may_make: bool) -> Result<Bucket, BucketError> {
        let timeout = Duration::from_millis(REQUEST_MS);
        let context = ContextBuilder::new().timeout(timeout).ack_timeout(timeout).build(client.clone());
        let begun = Instant::now();
        loop {
            match found_or_made(&context, options, may_make).await {
                Ok(is) => {
                    options.check(&is)?;
                    let stream = context
                        .get_stream_no_info(&is.name)
                        .await
                        .map_err(|error| BucketError::Refused { bucket: options.name.clone(), what: error.to_string() })?;
                    return Ok(Bucket { context, stream, name: options.name.clone() });
                }
                Err(error) if error.is_transient() && begun.elapsed() < Duration::from_millis(OPEN_MS) => {
                    tracing::warn!(%error, "waiting for JetStream");
                    pause(OPEN_PAUSE_MS).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.name)
    }

    fn unreachable(&self, what: impl ToString) -> BucketError {
        BucketError::Unreachable { bucket: self.name.clone(), what: what.to_string() }
    }

    fn refused(&self, what: impl ToString) -> BucketError {
        BucketError::Refused { bucket: self.name.clone(), what: what.to_string() }
    }

    /// The value of a key, from the leader.
    pub async fn newest(&self, key: &str) -> Result<Option<StreamMessage>, BucketError> {
        self.until_known(|| {
            Box::pin(async {
                match self.stream.raw_message_builder().last_by_subject(self.subject(key)).send().await {
                    Ok(found) => Ok(Some(found)),
                    Err(error) if matches!(error.kind(), RawMessageErrorKind::NoMessageFound) => Ok(None),
                    Err(error) => Err(self.unreachable(error)),
                }
            })
        })
        .await
    }

    /// The first value from this sequence on whose key matches, from the leader.
    pub async fn next(&self, pattern: &str, sequence: u64) -> Result<Option<StreamMessage>, BucketError> {
        self.until_known(|| {
            Box::pin(async {
                let asked = self.stream.raw_message_builder().sequence(sequence).next_by_subject(self.subject(pattern)).send();
                match asked.await {
                    Ok(found) => Ok(Some(found)),
                    Err(error) if matches!(error.kind(), RawMessageErrorKind::NoMessageFound) => Ok(None),
                    Err(error) => Err(self.unreachable(error)),
                }
            })
        })
        .await
    }

    /// The value of a key as some replica has it. Asked once.
    pub async fn glance(&self, key: &str) -> Result<Option<Bytes>, BucketError> {
        match self.stream.direct_get_last_for_subject(self.subject(key)).await {
            Ok(found) => Ok(Some(found.payload)),
            Err(error) if matches!(error.kind(), DirectGetErrorKind::NotFound) => Ok(None),
            Err(error) => Err(self.unreachable(error)),
        }
    }

    /// `false` when the key has a value already, perhaps this one.
    pub async fn create(&self, key: &str, headers: HeaderMap, value: Bytes) -> Result<bool, BucketError> {
        self.until_known(|| {
            Box::pin(async {
                let mut headers = headers.clone();
                headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
                match self.publish(key, headers, value.clone()).await {
                    Ok(()) => Ok(true),
                    Err(error) if matches!(error.kind(), PublishErrorKind::WrongLastSequence) => Ok(false),
                    Err(error) => Err(self.not_published(error)),
                }
            })
        })
        .await
    }

    /// Sets a key's value, whatever it was. Tried once.
    pub async fn put(&self, key: &str, value: Bytes) -> Result<(), BucketError> {
        self.publish(key, HeaderMap::new(), value).await.map_err(|error| self.not_published(error))
    }

    async fn publish(&self, key: &str, headers: HeaderMap, value: Bytes) -> Result<(), PublishError> {
        let message = PublishMessage::build().headers(headers).payload(value);
        self.context.send_publish(self.subject(key), message).await?.await.map(drop)
    }

    fn not_published(&self, error: PublishError) -> BucketError {
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => self.refused(error),
            // That nobody listens is so for a moment when a bucket was just made, and while its servers elect.
            _ => self.unreachable(error),
        }
    }

    /// Removes one message and has each server write noise over it. One that is gone already is as good.
    pub async fn erase(&self, sequence: u64) -> Result<(), BucketError> {
        self.until_known(|| {
            Box::pin(async {
                let subject = format!("STREAM.MSG.DELETE.KV_{}", self.name);
                let asked = self.context.request(subject, &json!({ "seq": sequence, "no_erase": false })).await;
                match asked.map_err(|error| self.unreachable(error))? {
                    Response::Ok(DeleteStatus { .. }) => Ok(()),
                    // It refuses as well what it does not have (any more).
                    Response::Err { error } => match self.stream.get_raw_message(sequence).await {
                        Err(gone) if matches!(gone.kind(), RawMessageErrorKind::NoMessageFound) => Ok(()),
                        _ => Err(self.unreachable(error)),
                    },
                }
            })
        })
        .await
    }

    /// What `BucketOptions::notices` tells, as far as it is heard.
    pub async fn notices(&self, options: &BucketOptions) -> Result<Option<Subscriber>, BucketError> {
        let Some(subject) = &options.notices else { return Ok(None) };
        let heard = self.context.client().subscribe(format!("{subject}.>")).await;
        heard.map(Some).map_err(|error| self.unreachable(error))
    }

    async fn until_known<'a, T>(&self, work: impl Fn() -> BoxFuture<'a, Result<T, BucketError>>) -> Result<T, BucketError> {
        let (begun, mut pause_ms) = (Instant::now(), PAUSE_MS);
        loop {
            match work().await {
                Err(error) if error.is_transient() && begun.elapsed() < Duration::from_millis(AGAIN_MS) => {
                    tracing::debug!(%error, "asked again");
                    pause(pause_ms).await;
                    pause_ms = (pause_ms * 2).min(PAUSE_MAX_MS);
                }
                known => return known,
            }
        }
    }
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms + fastrand::u64(..=ms / 2))).await;
}

async fn found_or_made(context: &Context, options: &BucketOptions, may_make: bool) -> Result<Config, BucketError> {
    let unreachable = |what: String| BucketError::Unreachable { bucket: options.name.clone(), what };
    let refused = |what: String| BucketError::Refused { bucket: options.name.clone(), what };
    let should = options.config();
    match context.get_stream(&should.name).await {
        Ok(found) => return Ok(found.cached_info().config.clone()),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.code() == 404 && may_make => {}
            GetStreamErrorKind::JetStream(error) if error.code() == 404 => {
                return Err(refused("there is none: no node has started there yet, or the prefix is another".to_owned()));
            }
            GetStreamErrorKind::JetStream(error) if error.code() < 500 => return Err(refused(error.to_string())),
            _ => return Err(unreachable(error.to_string())),
        },
    }
    match context.create_stream(should).await {
        Ok(made) => Ok(made.cached_info().config.clone()),
        Err(error) => match error.kind() {
            // Another node may have made it at this moment, which the next look tells.
            CreateStreamErrorKind::JetStream(why)
                if why.code() < 500 && ![NAME_IN_USE, NO_PEERS].contains(&why.error_code().0) =>
            {
                Err(refused(why.to_string()))
            }
            _ => Err(unreachable(error.to_string())),
        },
    }
}

/// The stream is there, and differs.
const NAME_IN_USE: u64 = 10_058;

/// An entity's key as one that a bucket takes: two tokens.
pub fn key_of(entity: &EntityKey) -> String {
    let mut key = String::with_capacity(entity.as_str().len() + 1);
    token::push_entity(entity, &mut key);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_differs_is_named_with_what_it_should_be() {
        let options = BucketOptions {
            name: "souk-identity".into(),
            description: String::new(),
            replicas: 3,
            glances: false,
            notices: Some("souk.i".into()),
        };
        options.check(&options.config()).unwrap();
        options.check(&Config { num_replicas: 5, ..options.config() }).unwrap();
        let wrong = [
            ("num_replicas", Config { num_replicas: 1, ..options.config() }),
            ("storage", Config { storage: StorageType::Memory, ..options.config() }),
            ("max_msgs_per_subject", Config { max_messages_per_subject: 64, ..options.config() }),
            ("max_age", Config { max_age: Duration::from_secs(1), ..options.config() }),
            ("allow_direct", Config { allow_direct: true, ..options.config() }),
            ("deny_delete", Config { deny_delete: true, ..options.config() }),
            ("republish", Config { republish: None, ..options.config() }),
        ];
        for (setting, config) in wrong {
            let error = options.check(&config).unwrap_err().to_string();
            assert!(error.contains(setting) && error.contains("souk-identity"), "{error}");
        }
    }
}
