"""GPT-2: `ops` is the specification, `model` runs it token by token, `training` trains it.

The names of llm.c (train_gpt2.c and its modules, train_gpt2.cu), and ours under `pyllm2`. The ops
(encoder_forward, layernorm_backward, ...), parameters (wte, ln1w, qkvw, ...) and activations (ln1,
preatt, fch_gelu, ...) have the original's names.

    GPT2Config                  gpt2.config.GPT2Config
    maxT                        gpt2.config.GPT2Config.max_seq_len
    ParameterTensors            parameters.Parameters
    fill_in_parameter_sizes     gpt2.config.GPT2Config.shapes
    ActivationTensors           gpt2.training.Activations, gpt2.training.Block
    fill_in_activation_sizes    gpt2.training.activation_floats
    encoded, residual3          gpt2.training.Block.residual1
    gpt2_forward                gpt2.training.TrainableGPT2.forward
    gpt2_backward               gpt2.training.TrainableGPT2.backward
    gpt2_zero_grad              gpt2.training.TrainableGPT2.add_gradient.fresh
    mean_loss                   training.losses.mean_loss
    gpt2_update                 training.ops.adamw_update
    global_norm_squared         training.ops.global_norm
    gpt2_build_from_checkpoint  gpt2.checkpoint.load_parameters
    gpt2_write_to_checkpoint    gpt2.checkpoint.save_parameters
    gpt_build_from_descriptor   gpt2.initial.descriptor, gpt2.initial.initial_parameters
    mt19937_state               mersenne.MersenneTwister
    normal_                     mersenne.MersenneTwister.normal
    random_permutation          mersenne.MersenneTwister.permute
    dataloader_next_batch       training.loader.DataLoader.next_batch
    evalloader_stat_losses      training.evaluation.count_correct
    tokenizer_decode            tokenizers.byte_level.ByteLevelTokenizer.decode_one
    sample_mult                 inference.sampling.multinomial
    random_f32                  inference.xorshift.XorShift.next_float
    get_learning_rate           training.schedule.learning_rate
    grad_accum_steps            training.recipe.Recipe.micro_steps
    total_batch_size            training.recipe.Recipe.total_batch
    OutlierDetector             training.outlier.OutlierDetector
    logger_log_train            training.log.training_line
    save_state                  training.checkpoint.Checkpoint.write
"""
