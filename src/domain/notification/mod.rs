//! What subscribers are told: transitions of executions and steps, made out of the state that was last told and what a
//! change says. A state that was never stored by itself is no transition. And where notifications may be sent.

pub mod address;
mod event;
mod identity;
mod status;
mod told;

pub use event::{DeliveryState, Event, Format};
pub use identity::Identity;
pub use status::Status;
pub use told::{
    Basis, ERROR_BYTES, ExecutionNews, ExecutionTold, Standing, StepNews, StepTold, cut,
};
