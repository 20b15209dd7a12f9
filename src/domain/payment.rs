//! A payment: one authorization of one order's total at one provider, then its capture, void or refund.
//!
//! The provider is owed each step under a stable key, so that a step whose outcome is unknown is asked for again and
//! never carried out twice.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CommandId, Context, Debt, Decision, Entity, Money, Outside, turn};

type Turn = turn::Turn<Payment>;

pub struct Payment;

/// The payment providers, as the domain sees them.
pub struct Provider;

impl Outside for Provider {
    const NAME: &'static str = "payment-provider";
    type Request = ProviderRequest;
    type Answer = ProviderAnswer;
}

#[derive(Debug, Clone, PartialEq)]
pub struct ProviderRequest {
    /// The provider's name, e.g. `sandbox`.
    pub provider: String,
    /// Our payment's id: what capture, void and refund refer to.
    pub payment: String,
    pub step: ProviderStep,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ProviderStep {
    Authorize {
        amount: Money,
        token: String,
    },
    Capture {
        amount: Money,
    },
    /// Ends whatever was authorized for this payment, also when nothing was.
    Void,
    Refund {
        amount: Money,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum ProviderAnswer {
    Approved {
        reference: String,
    },
    Declined {
        reason: String,
    },
    /// An outage or an unknown outcome: ask again with the same key.
    Unavailable {
        reason: String,
    },
}

/// How a shopper pays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PaymentMethod")]
pub struct Method {
    /// Who takes the payment; `sandbox` is built in and moves no money.
    pub provider: String,
    /// What the provider gave for it; `tok_ok` pays at the sandbox.
    pub token: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Its own id, which the provider knows it by.
    pub id: String,
    pub order: String,
    pub amount: Option<Money>,
    pub method: Option<Method>,
    pub phase: Phase,
    /// The provider's reference of the authorization.
    pub reference: Option<String>,
    /// Why it was declined.
    pub reason: Option<String>,
    /// The commands whose callers wait for the step under way.
    pub waiting: Vec<CommandId>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    #[default]
    Absent,
    Authorizing,
    Authorized,
    Declined,
    Capturing,
    Captured,
    CaptureFailed,
    Voiding,
    Voided,
    Refunding,
    Refunded,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Answered when the provider has spoken.
    Authorize {
        order: String,
        amount: Money,
        method: Method,
    },
    Capture,
    Void,
    Refund,
    HeardApproved {
        step: Step,
        reference: String,
    },
    HeardDeclined {
        step: Step,
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Authorize,
    Capture,
    Void,
    Refund,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Authorized,
    Declined { reason: String },
    Captured,
    CaptureFailed { reason: String },
    Voided,
    Refunded,
    Noted,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("the payment is {phase:?} and cannot take this step")]
    OutOfOrder { phase: Phase },
    #[error("the payment was made for another order or amount")]
    Differs,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "payment.created")]
    Created { id: String, command: CommandId, order: String, amount: Money, method: Method },
    /// Another command asked for the step that is under way, and waits for it too.
    #[serde(rename = "payment.asked_again")]
    AskedAgain { command: CommandId },
    #[serde(rename = "payment.authorized")]
    Authorized { reference: String },
    #[serde(rename = "payment.capture_requested")]
    CaptureRequested { command: CommandId },
    /// Captured: the money is ours.
    #[serde(rename = "payment.success")]
    Captured { reference: String, amount: Money },
    /// Declined at authorization or capture; nothing was taken.
    #[serde(rename = "payment.failed")]
    Failed { step: Step, reason: String },
    #[serde(rename = "payment.void_requested")]
    VoidRequested { command: CommandId },
    #[serde(rename = "payment.voided")]
    Voided,
    #[serde(rename = "payment.refund_requested")]
    RefundRequested { command: CommandId },
    #[serde(rename = "payment.refunded")]
    Refunded { reference: String, amount: Money },
}

impl Entity for Payment {
    const KIND: &'static str = "payment";
    const SNAPSHOT_FORMAT: u32 = 1;

    type State = State;
    type Command = Command;
    type Event = Event;
    type Reply = Reply;
    type Rejection = Rejection;

    fn decide(state: &State, command: Command, context: &Context<'_>) -> Result<Decision<Self>, Rejection> {
        match command {
            Command::Authorize { order, amount, method } => state.authorize(order, amount, method, context),
            Command::Capture => state.capture(context),
            Command::Void => state.void(context),
            Command::Refund => state.refund(context),
            Command::HeardApproved { step, reference } => Ok(state.heard_approved(step, reference)),
            Command::HeardDeclined { step, reason } => Ok(state.heard_declined(step, reason)),
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Created { id, command, order, amount, method } => {
                state.id.clone_from(id);
                state.order.clone_from(order);
                state.amount = Some(*amount);
                state.method = Some(method.clone());
                state.start(Phase::Authorizing, command);
            }
            Event::AskedAgain { command } => state.waiting.push(command.clone()),
            Event::Authorized { reference } => {
                state.reference = Some(reference.clone());
                state.end(Phase::Authorized);
            }
            Event::CaptureRequested { command } => state.start(Phase::Capturing, command),
            Event::Captured { .. } => state.end(Phase::Captured),
            Event::Failed { step, reason } => {
                state.reason = Some(reason.clone());
                match step {
                    Step::Authorize => state.end(Phase::Declined),
                    Step::Capture => state.end(Phase::CaptureFailed),
                    Step::Void | Step::Refund => {}
                }
            }
            Event::VoidRequested { command } => state.start(Phase::Voiding, command),
            Event::Voided => state.end(Phase::Voided),
            Event::RefundRequested { command } => state.start(Phase::Refunding, command),
            Event::Refunded { .. } => state.end(Phase::Refunded),
        }
    }

    fn is_at_rest(state: &State) -> bool {
        !matches!(state.phase, Phase::Absent | Phase::Authorized) && Self::owes(state).is_empty()
    }

    fn owes(state: &State) -> Vec<Debt<Self>> {
        let (Some(amount), Some(method)) = (state.amount, &state.method) else { return Vec::new() };
        let (id, step, request) = match state.phase {
            Phase::Authorizing => ("authorize", Step::Authorize, ProviderStep::Authorize { amount, token: method.token.clone() }),
            Phase::Capturing => ("capture", Step::Capture, ProviderStep::Capture { amount }),
            Phase::Voiding => ("void", Step::Void, ProviderStep::Void),
            Phase::Refunding => ("refund", Step::Refund, ProviderStep::Refund { amount }),
            Phase::Absent
            | Phase::Authorized
            | Phase::Declined
            | Phase::Captured
            | Phase::CaptureFailed
            | Phase::Voided
            | Phase::Refunded => return Vec::new(),
        };
        let request = ProviderRequest { provider: method.provider.clone(), payment: state.id.clone(), step: request };
        vec![Debt::call::<Provider>(id, request, move |answer| hear(step, answer))]
    }
}

/// A void or a refund that the provider declines stays owed: what was promised to the shopper is asked for until it is
/// done or an operator has done it.
fn hear(step: Step, answer: ProviderAnswer) -> Option<Command> {
    match (answer, step) {
        (ProviderAnswer::Approved { reference }, _) => Some(Command::HeardApproved { step, reference }),
        (ProviderAnswer::Declined { reason }, Step::Authorize | Step::Capture) => Some(Command::HeardDeclined { step, reason }),
        (ProviderAnswer::Declined { .. }, Step::Void | Step::Refund) | (ProviderAnswer::Unavailable { .. }, _) => None,
    }
}

impl State {
    fn start(&mut self, phase: Phase, command: &CommandId) {
        self.phase = phase;
        self.waiting = vec![command.clone()];
    }

    fn end(&mut self, phase: Phase) {
        self.phase = phase;
        self.waiting.clear();
    }

    fn out_of_order(&self) -> Rejection {
        Rejection::OutOfOrder { phase: self.phase }
    }

    /// One more caller for the step under way.
    fn ask_again(&self, context: &Context<'_>) -> Decision<Payment> {
        match self.waiting.contains(context.command) {
            true => Decision::later(Vec::new()),
            false => Decision::later(vec![Event::AskedAgain { command: context.command.clone() }]),
        }
    }

    fn done(&self, reply: Reply) -> Result<Decision<Payment>, Rejection> {
        Ok(Decision::now(Vec::new(), reply))
    }

    fn reason(&self) -> String {
        self.reason.clone().unwrap_or_default()
    }

    fn authorize(
        &self,
        order: String,
        amount: Money,
        method: Method,
        context: &Context<'_>,
    ) -> Result<Decision<Payment>, Rejection> {
        let (id, command) = (context.id.to_owned(), context.command.clone());
        if self.phase == Phase::Absent {
            return Ok(Decision::later(vec![Event::Created { id, command, order, amount, method }]));
        }
        if matches!(self.phase, Phase::Voiding | Phase::Voided) {
            return Err(self.out_of_order());
        }
        if self.order != order || self.amount != Some(amount) {
            return Err(Rejection::Differs);
        }
        match self.phase {
            Phase::Authorizing => Ok(self.ask_again(context)),
            Phase::Declined => self.done(Reply::Declined { reason: self.reason() }),
            _ => self.done(Reply::Authorized),
        }
    }

    fn capture(&self, context: &Context<'_>) -> Result<Decision<Payment>, Rejection> {
        match self.phase {
            Phase::Authorized => Ok(Decision::later(vec![Event::CaptureRequested { command: context.command.clone() }])),
            Phase::Capturing => Ok(self.ask_again(context)),
            Phase::Captured => self.done(Reply::Captured),
            Phase::CaptureFailed => self.done(Reply::CaptureFailed { reason: self.reason() }),
            _ => Err(self.out_of_order()),
        }
    }

    /// Before there is anything to void the word is kept, so that an authorization arriving later is refused.
    fn void(&self, context: &Context<'_>) -> Result<Decision<Payment>, Rejection> {
        let mut turn = Turn::on(self);
        match self.phase {
            Phase::Absent => turn.emit(Event::Voided),
            Phase::Declined | Phase::Voided => {}
            Phase::Voiding => return Ok(self.ask_again(context)),
            Phase::Authorizing | Phase::Authorized => {
                turn.emit(Event::VoidRequested { command: context.command.clone() });
                turn.settle_all(self.waiting.iter().cloned(), &Err(Rejection::OutOfOrder { phase: Phase::Voiding }));
                return Ok(turn.later());
            }
            _ => return Err(self.out_of_order()),
        }
        Ok(turn.now(Reply::Voided))
    }

    fn refund(&self, context: &Context<'_>) -> Result<Decision<Payment>, Rejection> {
        match self.phase {
            Phase::Captured => Ok(Decision::later(vec![Event::RefundRequested { command: context.command.clone() }])),
            Phase::Refunding => Ok(self.ask_again(context)),
            Phase::Refunded => self.done(Reply::Refunded),
            _ => Err(self.out_of_order()),
        }
    }

    fn heard_approved(&self, step: Step, reference: String) -> Decision<Payment> {
        let mut turn = Turn::on(self);
        let concluded = match (step, self.phase, self.amount) {
            (Step::Authorize, Phase::Authorizing, _) => Some((Event::Authorized { reference }, Reply::Authorized)),
            (Step::Capture, Phase::Capturing, Some(amount)) => Some((Event::Captured { reference, amount }, Reply::Captured)),
            (Step::Void, Phase::Voiding, _) => Some((Event::Voided, Reply::Voided)),
            (Step::Refund, Phase::Refunding, Some(amount)) => Some((Event::Refunded { reference, amount }, Reply::Refunded)),
            _ => None,
        };
        if let Some((event, reply)) = concluded {
            turn.emit(event);
            turn.settle_all(self.waiting.iter().cloned(), &Ok(reply));
        }
        turn.now(Reply::Noted)
    }

    fn heard_declined(&self, step: Step, reason: String) -> Decision<Payment> {
        let mut turn = Turn::on(self);
        let reply = match (step, self.phase) {
            (Step::Authorize, Phase::Authorizing) => Reply::Declined { reason: reason.clone() },
            (Step::Capture, Phase::Capturing) => Reply::CaptureFailed { reason: reason.clone() },
            _ => return turn.now(Reply::Noted),
        };
        turn.emit(Event::Failed { step, reason });
        turn.settle_all(self.waiting.iter().cloned(), &Ok(reply));
        turn.now(Reply::Noted)
    }
}

#[cfg(test)]
#[path = "payment_tests.rs"]
mod tests;
