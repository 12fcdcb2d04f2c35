//! Why a write is refused by a rule. Facts only; the words and codes for clients are made at the edge.

/// A write that the rules do not allow. Nothing of it was applied.
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    /// There is no such execution.
    ExecutionNotFound { execution_id: String },
    /// There is no such step. `step` is its number or key as the client gave it.
    StepNotFound { execution_id: String, step: String },
    /// The id is taken by a record with other content.
    ExecutionExists { execution_id: String },
    /// The number or key is taken by a step with other content.
    StepExists { execution_id: String, step: String },
    /// The record's status does not allow it.
    Status { what: String, from: &'static str, to: &'static str, why: &'static str },
    /// Another stored record has the same id, which another program gave to both, and the one that was to be changed
    /// is not the one that has been changed since. `step` is none where executions have it.
    DuplicateId { execution_id: String, step: Option<String> },
    /// A mirrored write found a record that somebody else has stored or changed. `what` names it.
    MirrorConflict { what: String },
    /// There is no such mirror.
    MirrorNotFound { name: String },
    /// Somebody else has begun to run the mirror.
    MirrorTakenOver { name: String },
    /// The mirror has ended.
    MirrorFinished { name: String },
    /// The mirror may not end yet; `why` is a sentence without its end.
    MirrorNotReady { name: String, why: String },
    /// The mirror is one of another source, `stored`.
    MirrorSourceDiffers { name: String, stored: String },
    /// `expected_revision` is not the stored one.
    StaleRevision { execution_id: String, expected: i64, stored: i64 },
    /// A running execution is deleted only by force.
    StillRunning { execution_id: String },
    /// The execution is being deleted just now; its id will be free again shortly.
    BeingDeleted { execution_id: String },
    /// A dependency is neither stored nor planned with it.
    UnknownDependency { step_id: i32, depends_on: String },
    /// The parent of a planned step is neither stored nor planned with it.
    UnknownParent { step_id: i32, parent: String },
    /// The dependencies go round in a circle through this step.
    DependencyCycle { step_id: i32 },
    /// There is no such artifact.
    ArtifactNotFound { artifact_id: String },
    /// The id is taken by an artifact with other content.
    ArtifactExists { artifact_id: String },
    /// The record has no bytes that this server keeps.
    ArtifactWithoutBytes { artifact_id: String },
    /// The bytes are not, or not all, those that were stored.
    ArtifactBytesLost { artifact_id: String },
    /// The execution would have more artifacts, or more bytes of them, than allowed.
    ArtifactLimit { field: &'static str, size: u64, limit: u64 },
    /// There is no upload of this id, or it has expired.
    UploadNotFound { upload_id: String },
    /// The id is taken by an upload of something else.
    UploadExists { upload_id: String },
    /// The upload cannot be gone on with from there.
    UploadOffset { upload_id: String, offset: u64, received: u64 },
    /// Another connection goes on with the upload.
    UploadTaken { upload_id: String },
    /// The greatest number that a step can have is taken, so none can be assigned.
    StepIdsExhausted { execution_id: String },
    /// A bound that only the stored record shows was passed.
    TooLarge { field: &'static str, size: usize, limit: usize },
    /// There is no such version, or no active one.
    ConfigurationNotFound { scope: String, version: Option<String> },
    /// The version is taken by a configuration with other content.
    ConfigurationExists { scope: String, version: String },
    /// The steps of the configuration make no plan; `why` is the end of a sentence about it.
    NoPlan { version: String, why: String },
    /// The `request_id` was used for other points.
    MetricRequestExists { execution_id: String, request_id: String },
    /// There is no such key.
    KeyNotFound { key_id: String },
    /// There is no such subscription.
    SubscriptionNotFound { subscription_id: String },
    /// Its revision is another one.
    StaleSubscription { subscription_id: String, expected: i64, stored: i64 },
    /// There is no such delivery.
    DeliveryNotFound { delivery_id: String },
    /// No role of the caller allows it.
    RoleForbids,
    /// The role that allows it is for other apps.
    ScopeForbids,
    /// The rule has to see the stored input and output: load them and decide again. Never leaves the store.
    NeedsPayload,
    /// The rule has to know how many steps there are: count them and decide again. Never leaves the store.
    NeedsStepCount,
}
