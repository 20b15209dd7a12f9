use super::*;
use crate::domain::testing::{Given, command_id, eur, given};

fn method() -> Method {
    Method { provider: "sandbox".to_owned(), token: "tok".to_owned() }
}

fn authorize() -> Command {
    Command::Authorize { order: "ord".to_owned(), amount: eur(500), method: method() }
}

fn approved(step: Step) -> Command {
    Command::HeardApproved { step, reference: "ref".to_owned() }
}

fn declined(step: Step) -> Command {
    Command::HeardDeclined { step, reason: "no".to_owned() }
}

fn start() -> Given<Payment> {
    given([])
}

/// A payment that has taken these steps.
fn after(commands: impl IntoIterator<Item = Command>) -> Given<Payment> {
    start().after(commands)
}

fn authorized() -> Given<Payment> {
    after([authorize(), approved(Step::Authorize)])
}

fn captured() -> Given<Payment> {
    authorized().after([Command::Capture, approved(Step::Capture)])
}

#[test]
fn an_authorization_is_answered_when_the_provider_has_spoken() {
    let created = Event::Created {
        id: "me".to_owned(),
        command: command_id("c"),
        order: "ord".to_owned(),
        amount: eur(500),
        method: method(),
    };
    let payment = start().when(authorize()).then_later(vec![created]).owing(&["authorize"]).and();
    let reference = "ref".to_owned();
    let approval = payment.when(approved(Step::Authorize)).then(vec![Event::Authorized { reference }], Reply::Noted);
    approval.settles(vec![(command_id("c"), Ok(Reply::Authorized))]).owing(&[]);
    let failed = Event::Failed { step: Step::Authorize, reason: "no".to_owned() };
    let refusal = payment.when(declined(Step::Authorize)).then(vec![failed], Reply::Noted);
    refusal.settles(vec![(command_id("c"), Ok(Reply::Declined { reason: "no".to_owned() }))]).owing(&[]);
}

#[test]
fn an_authorization_asked_for_again_gets_the_same_answer() {
    let again = Event::AskedAgain { command: command_id("d") };
    let payment = after([authorize()]);
    payment.when(authorize()).then_later(vec![]);
    let payment = payment.by("d").when(authorize()).then_later(vec![again]).and();
    let both = payment.when(approved(Step::Authorize));
    both.settles(vec![(command_id("c"), Ok(Reply::Authorized)), (command_id("d"), Ok(Reply::Authorized))]);
    authorized().when(authorize()).then_nothing_but(Reply::Authorized);
    captured().when(authorize()).then_nothing_but(Reply::Authorized);
    let refused = after([authorize(), declined(Step::Authorize)]);
    refused.when(authorize()).then_nothing_but(Reply::Declined { reason: "no".to_owned() });
}

#[test]
fn a_payment_belongs_to_one_order_and_one_amount() {
    let other = |order: &str, amount| Command::Authorize { order: order.to_owned(), amount: eur(amount), method: method() };
    authorized().when(other("ord", 501)).then_refused(Rejection::Differs);
    authorized().when(other("ord2", 500)).then_refused(Rejection::Differs);
}

#[test]
fn what_is_authorized_is_captured_once() {
    let requested = Event::CaptureRequested { command: command_id("c") };
    let payment = authorized().when(Command::Capture).then_later(vec![requested]).owing(&["capture"]).and();
    payment.when(Command::Capture).then_later(vec![]);
    let event = Event::Captured { reference: "ref".to_owned(), amount: eur(500) };
    let done = payment.when(approved(Step::Capture)).then(vec![event], Reply::Noted);
    done.settles(vec![(command_id("c"), Ok(Reply::Captured))]).owing(&[]);
    captured().when(Command::Capture).then_nothing_but(Reply::Captured);
}

#[test]
fn a_failed_capture_is_final() {
    let payment = authorized().after([Command::Capture]).when(declined(Step::Capture));
    let reply = Reply::CaptureFailed { reason: "no".to_owned() };
    let payment = payment.settles(vec![(command_id("c"), Ok(reply.clone()))]).owing(&[]).and();
    payment.when(Command::Capture).then_nothing_but(reply);
    payment.when(Command::Void).then_refused(Rejection::OutOfOrder { phase: Phase::CaptureFailed });
}

#[test]
fn a_void_ends_an_authorization_and_those_who_wait_for_it_hear_so() {
    let requested = Event::VoidRequested { command: command_id("v") };
    let payment = after([authorize()]).by("v").when(Command::Void).then_later(vec![requested]).owing(&["void"]);
    let waiting = Err(Rejection::OutOfOrder { phase: Phase::Voiding });
    let payment = payment.settles(vec![(command_id("c"), waiting)]).and();
    payment.when(authorize()).then_refused(Rejection::OutOfOrder { phase: Phase::Voiding });
    payment.when(approved(Step::Authorize)).then_nothing_but(Reply::Noted);
    let payment = payment.when(approved(Step::Void)).then(vec![Event::Voided], Reply::Noted);
    let payment = payment.settles(vec![(command_id("v"), Ok(Reply::Voided))]).owing(&[]).and();
    payment.when(Command::Void).then_nothing_but(Reply::Voided);
    payment.when(Command::Capture).then_refused(Rejection::OutOfOrder { phase: Phase::Voided });
}

#[test]
fn a_void_that_overtook_its_authorization_has_it_refused() {
    let payment = start().when(Command::Void).then(vec![Event::Voided], Reply::Voided).owing(&[]).and();
    payment.when(authorize()).then_refused(Rejection::OutOfOrder { phase: Phase::Voided });
}

#[test]
fn a_declined_payment_has_nothing_to_void() {
    after([authorize(), declined(Step::Authorize)]).when(Command::Void).then_nothing_but(Reply::Voided);
}

#[test]
fn what_is_captured_can_only_be_refunded() {
    captured().when(Command::Void).then_refused(Rejection::OutOfOrder { phase: Phase::Captured });
    let requested = Event::RefundRequested { command: command_id("c") };
    let payment = captured().when(Command::Refund).then_later(vec![requested]).owing(&["refund"]).and();
    payment.when(Command::Refund).then_later(vec![]);
    let refunded = Event::Refunded { reference: "ref".to_owned(), amount: eur(500) };
    let payment = payment.when(approved(Step::Refund)).then(vec![refunded], Reply::Noted);
    let payment = payment.settles(vec![(command_id("c"), Ok(Reply::Refunded))]).owing(&[]).and();
    payment.when(Command::Refund).then_nothing_but(Reply::Refunded);
}

#[test]
fn steps_out_of_order_are_refused() {
    for command in [Command::Capture, Command::Refund] {
        start().when(command).then_refused(Rejection::OutOfOrder { phase: Phase::Absent });
    }
    authorized().when(Command::Refund).then_refused(Rejection::OutOfOrder { phase: Phase::Authorized });
    after([authorize()]).when(Command::Capture).then_refused(Rejection::OutOfOrder { phase: Phase::Authorizing });
}

#[test]
fn an_answer_that_nobody_waits_for_is_noted() {
    for step in [Step::Authorize, Step::Capture, Step::Void, Step::Refund] {
        start().when(approved(step)).then_nothing_but(Reply::Noted);
        start().when(declined(step)).then_nothing_but(Reply::Noted);
    }
}

#[test]
fn an_unavailable_provider_stays_owed_and_so_does_a_declined_refund() {
    let unavailable = || ProviderAnswer::Unavailable { reason: "down".to_owned() };
    for step in [Step::Authorize, Step::Capture, Step::Void, Step::Refund] {
        assert_eq!(hear(step, unavailable()), None);
    }
    let no = || ProviderAnswer::Declined { reason: "no".to_owned() };
    assert_eq!((hear(Step::Refund, no()), hear(Step::Void, no())), (None, None));
    assert_eq!(hear(Step::Capture, no()), Some(declined(Step::Capture)));
}
