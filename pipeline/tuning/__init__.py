"""What `vp finetune` is made of: towers and heads of each fold, trained together."""
