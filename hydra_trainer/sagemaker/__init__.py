"""What a job is as an Amazon SageMaker training job, and how it is sent there."""
