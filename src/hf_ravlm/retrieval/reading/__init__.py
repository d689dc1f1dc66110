"""How passages come in: files, tables, data sets, public corpora."""
