//! The same texts in a collection with a text index of MongoDB, for comparison: what it takes to store them with and
//! without it, and how fast it answers.

use std::time::Instant;

use anyhow::Context as _;
use bson::{Document, doc};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use mongodb::options::IndexOptions;
use mongodb::{Collection, Database, IndexModel};

use super::PAGE;
use super::texts::{Question, Texts};
use crate::track::database_of_its_own;

const AT_ONCE: u64 = 1000;
const SIDE_BY_SIDE: usize = 3;

pub struct Direct {
    database: Database,
    texts: Collection<Document>,
}

impl Direct {
    pub async fn open(uri: &str) -> anyhow::Result<Self> {
        let database = database_of_its_own(uri, "--direct").await?;
        Ok(Direct { texts: database.collection("texts"), database })
    }

    pub async fn remove(&self) -> anyhow::Result<()> {
        self.database.drop().await.context("the database of the texts could not be dropped")
    }

    async fn insert(
        &self,
        into: &Collection<Document>,
        texts: &Texts,
        count: u64,
    ) -> anyhow::Result<f64> {
        let began = Instant::now();
        let inserts = stream::iter((0..count).step_by(AT_ONCE as usize)).map(|first| {
            let until = (first + AT_ONCE).min(count);
            let documents: Vec<Document> = (first..until)
                .map(|number| doc! { "_id": number as i64, "text": texts.get(number) })
                .collect();
            let into = into.clone();
            async move { into.insert_many(documents).ordered(false).await }
        });
        let mut inserts = inserts.buffered(SIDE_BY_SIDE);
        while inserts.try_next().await.context("texts could not be inserted")?.is_some() {}
        Ok(count as f64 / began.elapsed().as_secs_f64())
    }

    /// Texts per second into a collection without and with a text index.
    pub async fn fill(&self, texts: &Texts, count: u64) -> anyhow::Result<(f64, f64)> {
        let plain = self.database.collection("plain");
        let without = self.insert(&plain, texts, count).await?;
        plain.drop().await?;
        let options = IndexOptions::builder().default_language("none".to_owned()).build();
        let index = IndexModel::builder().keys(doc! { "text": "text" }).options(options).build();
        self.texts.create_index(index).await.context("no text index can be made")?;
        Ok((without, self.insert(&self.texts, texts, count).await?))
    }

    /// Bytes of the text index.
    pub async fn index_bytes(&self) -> anyhow::Result<f64> {
        let stats = self.database.run_command(doc! { "collStats": "texts" }).await?;
        let size = stats.get_document("indexSizes")?.get("text_text");
        Ok(size.and_then(|size| size.as_i32().map(f64::from).or(size.as_f64())).unwrap_or_default())
    }

    pub async fn ask(&self, question: &Question) -> Result<usize, String> {
        let filter = doc! { "$text": { "$search": &question.text_index } };
        let score = doc! { "score": { "$meta": "textScore" } };
        let find = self.texts.find(filter).sort(score.clone()).projection(score).limit(PAGE);
        let found: Result<Vec<Document>, _> = match find.await {
            Ok(found) => found.try_collect().await,
            Err(error) => Err(error),
        };
        found.map(|found| found.len()).map_err(|error| error.to_string())
    }
}
