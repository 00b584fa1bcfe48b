"""Llama-2: `ops` is the specification, `model` runs it token by token, `training` trains it.

The names of llama2.c (run.c, runq.c, then model.py, train.py, export.py), and ours under `pyllm2`:

    Config                      llama2.config.Llama2Config
    TransformerWeights          llama2.model.Weights
    token_embedding_table       llama2.model.Weights.token_embedding
    rms_att_weight              llama2.model.Weights.attention_norm
    rms_ffn_weight              llama2.model.Weights.ffn_norm
    rms_final_weight            llama2.model.Weights.final_norm
    wcls                        llama2.model.Weights.classifier
    key_cache, value_cache      llama2.model.KVCache.keys, llama2.model.KVCache.values
    xb                          llama2.model.Llama2.attention_block.y
    hb, hb2                     llama2.model.Llama2.ffn_block.gate, llama2.model.Llama2.ffn_block.up
    forward                     llama2.model.Llama2.forward
    rmsnorm, softmax, matmul    llama2.ops.rmsnorm, llama2.ops.softmax, llama2.ops.matmul
    fcr, fci                    llama2.ops.rope.cos, llama2.ops.rope.sin
    QuantizedTensor             parameters.Quantized
    matmul (runq.c)             llama2.ops.matmul_q8
    read_checkpoint             llama2.checkpoint.read_model
    encode                      tokenizers.sentencepiece.SentencePieceTokenizer.encode
    decode                      inference.original.piece_bytes
    safe_printf                 inference.original.shown
    Sampler                     inference.original.OriginalSampler
    sample_argmax               inference.sampling.argmax
    sample_mult                 inference.sampling.multinomial
    sample_topp                 inference.sampling.sample_top_p
    random_f32                  inference.xorshift.XorShift.next_float
    generate, chat              cli.original_loops.generate, cli.original_loops.chat
    precompute_freqs_cis        llama2.ops.rope_tables
    apply_rotary_emb            llama2.ops.rope
    multiple_of                 llama2.initial.hidden_dim.multiple_of
    _init_weights               llama2.initial.initial_parameters
    get_lr                      training.schedule.learning_rate
    estimate_loss               training.trainer.Trainer.validate
    legacy_export               llama2.checkpoint.save_parameters
    quantize_q80                formats.llama2c_q8.quantize_weights
"""
