//! A payment provider that does as its script says, and keeps its word: a key it has seen before gets its first answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use souk::domain::payment::{Provider, ProviderAnswer, ProviderRequest, ProviderStep};
use souk::integrations::sandbox::Sandbox;
use souk::integrations::{Call, Integration};

/// What becomes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// It arrives nowhere, and there is never an answer.
    NeverHeard,
    /// It is carried out, and there is never an answer.
    AnswerLost,
    /// It is carried out, and the answer is that nobody knows.
    CarriedOutButUnknown,
    /// Nothing is done, and the answer is that nobody knows.
    Unknown,
    /// As the token says.
    Answers,
}

#[derive(Default)]
pub struct Bank {
    script: Mutex<VecDeque<Says>>,
    requests: Mutex<Vec<(String, ProviderRequest)>>,
    carried_out: Mutex<BTreeMap<String, (ProviderRequest, ProviderAnswer)>>,
    is_out: AtomicBool,
    traces: Mutex<BTreeSet<(String, Arc<str>)>>,
}

/// Where a bank is asked; any number of them lead to the same one.
#[derive(Clone)]
pub struct Counter(pub Arc<Bank>);

impl Integration<Provider> for Counter {
    async fn carry(&self, request: ProviderRequest, call: Call) -> ProviderAnswer {
        self.0.carry(request, call).await
    }
}

impl Bank {
    /// The next requests are treated like this; those after them are answered.
    pub fn script(&self, says: impl IntoIterator<Item = Says>) {
        self.script.lock().unwrap().extend(says);
    }

    /// While it is out it does nothing, and says that nobody knows.
    pub fn is_out(&self, is_out: bool) {
        self.is_out.store(is_out, Ordering::SeqCst);
    }

    /// Under which correlation ids it was asked for each payment.
    pub fn traces(&self) -> BTreeSet<(String, Arc<str>)> {
        self.traces.lock().unwrap().clone()
    }

    /// The keys of all requests so far, in the order they came.
    pub fn keys(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|(key, _)| key.clone()).collect()
    }

    /// How often each payment was really authorized, captured, voided and refunded, by the word of the step.
    pub fn approved(&self, word: &str) -> BTreeMap<String, usize> {
        let mut times = BTreeMap::new();
        for (request, answer) in self.carried_out.lock().unwrap().values() {
            if name(&request.step) == word && matches!(answer, ProviderAnswer::Approved { .. }) {
                *times.entry(request.payment.clone()).or_default() += 1;
            }
        }
        times
    }

    async fn carry_out(&self, call: Call, request: ProviderRequest) -> ProviderAnswer {
        if let Some((before, answer)) = self.carried_out.lock().unwrap().get(&call.key) {
            assert_eq!(*before, request, "one key, one request");
            return answer.clone();
        }
        let answer = Sandbox.carry(request.clone(), call.clone()).await;
        if !matches!(answer, ProviderAnswer::Unavailable { .. }) {
            self.carried_out.lock().unwrap().entry(call.key).or_insert((request, answer.clone()));
        }
        answer
    }
}

fn name(step: &ProviderStep) -> &'static str {
    match step {
        ProviderStep::Authorize { .. } => "authorize",
        ProviderStep::Capture { .. } => "capture",
        ProviderStep::Void => "void",
        ProviderStep::Refund { .. } => "refund",
    }
}

impl Integration<Provider> for Bank {
    async fn carry(&self, request: ProviderRequest, call: Call) -> ProviderAnswer {
        self.requests.lock().unwrap().push((call.key.clone(), request.clone()));
        self.traces.lock().unwrap().insert((request.payment.clone(), call.correlation.clone()));
        if self.is_out.load(Ordering::SeqCst) {
            return ProviderAnswer::Unavailable { reason: "out".into() };
        }
        let says = self.script.lock().unwrap().pop_front().unwrap_or(Says::Answers);
        let unknown = || ProviderAnswer::Unavailable { reason: "as told".into() };
        match says {
            Says::NeverHeard => std::future::pending().await,
            Says::AnswerLost => {
                self.carry_out(call, request).await;
                std::future::pending().await
            }
            Says::CarriedOutButUnknown => {
                self.carry_out(call, request).await;
                unknown()
            }
            Says::Unknown => unknown(),
            Says::Answers => self.carry_out(call, request).await,
        }
    }
}
